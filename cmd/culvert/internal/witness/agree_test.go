package witness

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/culvert-project/culvert/enforce"
	"github.com/culvert-project/culvert/enforce/plan"
	"github.com/culvert-project/culvert/loader"
)

// TestAgree holds the lines that packets are judged by, which explain asks too,
// against the policy that routes are judged by, on random policies: both give an
// address the same class and the same tunnel.
func TestAgree(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 1))
	tried, gateways, servers := 0, 0, 0
	for range 10_000 {
		p, spec := randomProtection(r)
		pol, problems := plan.Build(spec)
		if len(problems) > 0 {
			continue // refused before either sees it
		}
		tried++
		for range 40 {
			a := randomAddress(r)
			class, entry := pol.Lookup(a)
			st := Classify(p, a)
			if !agree(&p, class, st, a) || class == plan.Protected && p.Sessions[entry.Session].Tunnel != st.Tunnel {
				t.Fatalf("%s: routes say %s, packets %+v\n%+v", a, class, st, p)
			}
			if st.Listed && st.Class == loader.Gateway {
				gateways++
			}
			if st.Listed && st.Class == loader.Server {
				servers++
			}
		}
	}
	if tried < 500 || gateways < 100 || servers < 100 {
		t.Errorf("%d policies, %d gateways, %d servers: too few to prove anything", tried, gateways, servers)
	}
}

// agree reports whether two classes mean the same. Of a server's address routes
// know only that it is let be.
func agree(p *enforce.Protection, class plan.Class, st Standing, a netip.Addr) bool {
	switch class {
	case plan.Unlisted:
		return !st.Listed
	case plan.Ignored:
		return st.Listed && st.Class == loader.Ignored
	case plan.Protected:
		return st.Listed && st.Class == loader.Protected
	case plan.Gateway:
		return st.Listed && st.Class == loader.Gateway
	}
	for _, s := range p.Sessions {
		for _, srv := range s.Servers {
			if srv.Addr.Addr() == a {
				return !st.Listed || st.Class == loader.Server || st.Class == loader.Excluded
			}
		}
	}
	return !st.Listed || st.Class == loader.Excluded
}

// randomProtection is a policy as the enforcer tells the witness of it, and as it
// is built from.
func randomProtection(r *rand.Rand) (enforce.Protection, plan.Spec) {
	var p enforce.Protection
	var spec plan.Spec
	for i := range 1 + r.IntN(2) {
		s := enforce.ProtectedSession{Session: enforce.Session{Tunnel: []string{"tun0", "wg0"}[i]}, Link: uint32(7 + i)}
		for range 1 + r.IntN(4) {
			s.Protect = append(s.Protect, randomPrefix(r))
		}
		for range r.IntN(3) {
			s.Exclude = append(s.Exclude, randomPrefix(r))
		}
		ps := plan.Session{Tunnel: s.Link, TunnelUp: true, Protect: s.Protect, Exclude: s.Exclude}
		for range r.IntN(3) {
			a := randomAddress(r)
			s.Servers = append(s.Servers, enforce.Server{Addr: netip.AddrPortFrom(a, 1194), Proto: "udp"})
			ps.Servers = append(ps.Servers, a)
		}
		p.Sessions, spec.Sessions = append(p.Sessions, s), append(spec.Sessions, ps)
	}
	for range r.IntN(3) {
		a := randomAddress(r)
		host := netip.PrefixFrom(a, a.BitLen())
		if plan.InIgnored(host) {
			continue
		}
		p.Gateways = append(p.Gateways, host)
	}
	spec.Gateways, spec.Pinholes = p.Gateways, p.Gateways
	return p, spec
}

// randomAddress stays in a small part of either space, so that prefixes overlap.
func randomAddress(r *rand.Rand) netip.Addr {
	if r.IntN(2) == 0 {
		return netip.AddrFrom4([4]byte{[]byte{10, 169}[r.IntN(2)], 254, byte(r.IntN(2)), byte(r.IntN(8))})
	}
	return netip.AddrFrom16([16]byte{[]byte{0xfd, 0xfe}[r.IntN(2)], 0x80, 14: byte(r.IntN(2)), 15: byte(r.IntN(8))})
}

func randomPrefix(r *rand.Rand) netip.Prefix {
	a := randomAddress(r)
	return netip.PrefixFrom(a, r.IntN(a.BitLen()+1)).Masked()
}
