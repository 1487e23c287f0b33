package loader

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// rules is a policy as the programs read it.
type rules map[netip.Prefix]leakRule

// groups are the exemptions of a policy: each different set of interfaces is a bit.
type groups [][]int

// maxGroups is how many bits a rule has.
const maxGroups = 32

// bit is that of a set of interfaces, which gets one if it has none; 0 is that of no interfaces.
func (g *groups) bit(set []int) uint32 {
	set = slices.Compact(slices.Sorted(slices.Values(set)))
	if len(set) == 0 {
		return 0
	}
	i := slices.IndexFunc(*g, func(s []int) bool { return slices.Equal(s, set) })
	if i < 0 {
		i = len(*g)
		*g = append(*g, set)
	}
	return 1 << i
}

// of is every group that an interface is in.
func (g groups) of(index int) (bits uint32) {
	for i, set := range g {
		if slices.Contains(set, index) {
			bits |= 1 << i
		}
	}
	return bits
}

// Set puts cfg in force, whole and without a gap. On an error nothing has changed, or, when it comes from letting go of
// an interface or a pin afterwards, everything has.
func (w *Witness) Set(cfg Config) error {
	return privileged(w.do(func() error { return w.set(cfg) }))
}

// set builds first, then covers what the new policy will need, swaps, and at last lets go of what it does not need.
func (w *Witness) set(cfg Config) error {
	next, exempt, err := compile(cfg)
	if err != nil {
		return err
	}
	w.guardBefore(cfg)
	before := w.cfg
	w.cfg = cfg
	w.widen()
	if err := w.swap(next, exempt); err != nil {
		w.cfg = before
		return err
	}
	all := func(d *device) uint32 { return exempt.of(d.index) }
	err = errors.Join(w.exempt(all), w.renew(), w.narrow(), w.guardAfter(cfg))
	w.relate()
	return err
}

// compile merges the lines of cfg by prefix and refuses what contradicts itself.
func compile(cfg Config) (rules, groups, error) {
	all, exempt := rules{}, groups{}
	for _, p := range cfg.Prefixes {
		if !p.Prefix.IsValid() || p.Class > Gateway {
			return nil, nil, fmt.Errorf("prefix %s: invalid", p.Prefix)
		}
		key := canonical(p.Prefix)
		r, ok := all[key]
		bit := exempt.bit(p.Exempt)
		if !ok {
			r = leakRule{Id: p.ID, Class: uint8(p.Class), Action: uint8(cfg.Action), Exempt: bit}
		}
		if err := add(&r, p, bit); err != nil {
			return nil, nil, fmt.Errorf("prefix %s: %w", p.Prefix, err)
		}
		all[key] = r
	}
	if len(exempt) > maxGroups {
		return nil, nil, fmt.Errorf("more than %d different sets of exempt interfaces", maxGroups)
	}
	return all, exempt, nil
}

func canonical(p netip.Prefix) netip.Prefix {
	if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return netip.PrefixFrom(p.Addr().WithZone(""), p.Bits()).Masked()
}

// add merges one more line into r.
func add(r *leakRule, p Prefix, exempt uint32) error {
	if r.Class != uint8(p.Class) {
		return errors.New("given two classes")
	}
	if r.Exempt != exempt {
		return errors.New("given two sets of exempt interfaces")
	}
	if p.Drop {
		r.Action = uint8(Drop)
	}
	if err := addName(r, &p); err != nil {
		return err
	}
	if err := addOwner(r, p.Tunnel); err != nil {
		return err
	}
	if p.Class == Server {
		if p.From > FromMark {
			return fmt.Errorf("no such sender: %d", p.From)
		}
		return addGate(r, leakGate{Port: p.Port, Proto: p.Proto, From: uint8(p.From), Who: p.Who})
	}
	return nil
}

// addName notes the name by which a tunnel may come back, and what it is. A rule has room for one.
func addName(r *leakRule, p *Prefix) error {
	if p.Name == "" {
		return nil
	}
	if len(p.Name) >= len(r.Tunnel) {
		return fmt.Errorf("%q is too long for the name of an interface", p.Name)
	}
	name, kind := chars(p.Name), chars(p.Kind)
	if r.Tunnel[0] != 0 && (r.Tunnel != name || r.Kind != kind || r.Frames != p.Frames) {
		return errors.New("given two tunnel names, or two kinds of tunnel")
	}
	r.Tunnel, r.Kind, r.Frames = name, kind, p.Frames
	return nil
}

// chars is a string as the programs have it: as much as there is room for, and its end.
func chars(s string) (out [16]int8) {
	for i := range min(len(s), len(out)-1) {
		out[i] = int8(s[i])
	}
	return out
}

func addOwner(r *leakRule, tunnel int) error {
	if tunnel == 0 || slices.Contains(r.Owner[:r.Owners], uint32(tunnel)) {
		return nil
	}
	if int(r.Owners) == len(r.Owner) {
		return fmt.Errorf("more than %d tunnels", len(r.Owner))
	}
	r.Owner[r.Owners] = uint32(tunnel)
	r.Owners++
	return nil
}

func addGate(r *leakRule, g leakGate) error {
	if slices.Contains(r.Gate[:r.Gates], g) {
		return nil
	}
	if int(r.Gates) == len(r.Gate) {
		return fmt.Errorf("more than %d transports", len(r.Gate))
	}
	r.Gate[r.Gates] = g
	r.Gates++
	if g.From != uint8(FromAny) {
		r.Narrow |= 1 << g.From
	}
	return nil
}

// exempt gives each device its groups. A device that no program sees stays unknown to the early hook.
func (w *Witness) exempt(of func(*device) uint32) error {
	for _, d := range w.devices {
		d.exempt = of(d)
		if err := w.know(d); err != nil {
			return err
		}
	}
	return nil
}
