package config

// Here are this system's places.
var Here = Windows
