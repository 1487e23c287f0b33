package enforce

// safeOpen is nothing: what Windows would wait for or follow, openRegular has seen.
const safeOpen = 0
