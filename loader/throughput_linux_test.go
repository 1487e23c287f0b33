package loader_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/culvert-project/culvert/loader"
	"github.com/culvert-project/culvert/testenv"
)

const (
	throughputRounds  = 7
	throughputSeconds = 2
)

// BenchmarkThroughput is iperf3 over a veth pair with the witness and without,
// in turn, so that a noisy machine troubles both: bits that the receiver got.
func BenchmarkThroughput(b *testing.B) {
	testenv.Require(b, testenv.Root, testenv.Tool("iperf3"))
	near, far := testenv.Namespace(b, "near"), testenv.Namespace(b, "far")
	testenv.Veth(b, testenv.End{NS: near, Name: "eth0", Addrs: testenv.Prefixes("192.0.2.1/24")},
		testenv.End{NS: far, Name: "eth0", Addrs: testenv.Prefixes("192.0.2.2/24")})
	testenv.Start(b, far.Command("iperf3", "-s", "-B", "192.0.2.2"))
	testenv.Eventually(b, 5*time.Second, "iperf3's server", func() bool {
		c, err := near.Dial("tcp", netip.MustParseAddrPort("192.0.2.2:5201"), time.Second)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	for range b.N {
		var with, without []float64
		for range throughputRounds {
			without = append(without, iperf(b, near))
			w := witness(b, near)
			with = append(with, iperf(b, near))
			if err := w.Close(); err != nil {
				b.Fatal(err)
			}
		}
		slices.Sort(with)
		slices.Sort(without)
		b.ReportMetric(median(without)/1e9, "without-Gbit/s")
		b.ReportMetric(median(with)/1e9, "with-Gbit/s")
		b.ReportMetric(median(with)/median(without), "ratio")
	}
}

func median(sorted []float64) float64 { return sorted[len(sorted)/2] }

// witness watches the namespace with a policy of a hundred prefixes, none of
// which the traffic is in.
func witness(b *testing.B, ns *testenv.NS) (w *loader.Witness) {
	var cfg loader.Config
	for i := range 100 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 16)
		cfg.Prefixes = append(cfg.Prefixes, loader.Prefix{Prefix: p, Class: loader.Protected, ID: uint32(i + 1)})
	}
	ns.Run(b, func() {
		var err error
		if w, err = loader.Open(loader.Options{}); err != nil {
			b.Fatal(err)
		}
	})
	if err := w.Set(cfg); err != nil {
		b.Fatal(err)
	}
	return w
}

// iperf returns the bits per second that the receiver got.
func iperf(b *testing.B, ns *testenv.NS) float64 {
	out, err := ns.Command("iperf3", "-c", "192.0.2.2", "-t", fmt.Sprint(throughputSeconds), "-J").Output()
	if err != nil {
		b.Fatalf("iperf3: %v: %s", err, out)
	}
	var got struct {
		End struct {
			Received struct {
				Bits float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if err := json.Unmarshal(out, &got); err != nil || got.End.Received.Bits == 0 {
		b.Fatalf("iperf3: %v: %s", err, out)
	}
	return got.End.Received.Bits
}
