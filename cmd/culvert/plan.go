package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/culvert-project/culvert/cmd/culvert/internal/config"
	"github.com/culvert-project/culvert/cmd/culvert/internal/control"
	"github.com/culvert-project/culvert/cmd/culvert/internal/plain"
	"github.com/culvert-project/culvert/cmd/culvert/internal/session"
	"github.com/culvert-project/culvert/enforce"
)

const planLong = `Show what opening the session would do to the main table now, and who would
notice. Nothing is changed.

Where a daemon runs it is asked: it knows what it holds and what it has put itself,
and the plan is what "culvert up" would do, beside the other sessions, under the
daemon's settings. Without one, no privilege is needed.

With --config the sessions of that file are taken, and the one that the flags
describe besides.

--json prints one document:

  version               1
  actions[]             in the order they would be carried out
    kind                put, remove, withdraw (culvert's own route, not needed any
                        more), restore (a held route, given back) or forget (one
                        that will not come back)
    route, reason       in words
    links[]             interfaces that the route leaves by
    default, connected  what kind of route it is
  pinholes[]            routes among the put ones that keep the VPN server reachable
  missing[]             protected prefixes without a route into the tunnel
  reported[]            routes that take protected traffic and would stay
  one_family[]          sessions that protect all of one family while the other
                        leaves outside
  unenforceable[]       what routing cannot protect
  notes[]               this host's own addresses among the protected ones, what
                        may go to a gateway
  noticed[]             who would notice: who, route, links[]

` + exitHelp

func newPlan(p *platform) *cobra.Command {
	var sess sessionFlags
	var file string
	var asJSON, keep bool
	cmd := &cobra.Command{
		Use:   "plan --tunnel INTERFACE --protect PREFIX[,PREFIX…]",
		Short: "Show what a session would change, and who would notice",
		Long:  p.help(planLong),
		Example: p.help(`  culvert plan --tunnel {{.Tunnel}} --protect 0.0.0.0/1,128.0.0.0/1 --server 198.51.100.7:1194/udp
  culvert plan --config {{.File}} --json`),
		Args: noArgs,
	}
	f := cmd.Flags()
	f.SortFlags = false
	sess.register(p, f)
	f.StringVar(&file, "config", "", "YAML `file` whose sessions are taken")
	f.BoolVar(&keep, "keep-unreachable", false, "report blackhole, unreachable and prohibit routes, do not remove them")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	f.String("socket", p.Socket, "`path` of the daemon's control socket")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := planSettings(cmd, file, &sess)
		if err == nil {
			err = p.check(&s)
		}
		if err != nil {
			return err
		}
		doc, err := preview(cmd, s)
		if err != nil {
			return err
		}
		if asJSON {
			return writeJSON(cmd.OutOrStdout(), doc)
		}
		w := &printer{w: cmd.OutOrStdout()}
		printPlan(w, doc)
		return w.err
	}
	return cmd
}

func planSettings(cmd *cobra.Command, file string, sess *sessionFlags) (config.Settings, error) {
	s := config.Default()
	if file != "" {
		if err := s.ReadFile(file); err != nil {
			return s, err
		}
	}
	if err := setChanged(cmd.Flags(), &s, "keep-unreachable", "socket"); err != nil {
		return s, err
	}
	if len(s.Sessions) > 0 && !sess.given(cmd.Flags()) {
		return s, nil
	}
	parsed, err := sess.text.Parse()
	if err != nil {
		return s, err
	}
	return s, s.Add(parsed)
}

// planDoc is the document that --json prints.
type planDoc struct {
	Version int `json:"version"`
	enforce.Preview
	Pinholes []string `json:"pinholes"`
	Noticed  []notice `json:"noticed"`
}

// notice is somebody who would notice that a route is gone.
type notice struct {
	Who   string   `json:"who"`
	Route string   `json:"route"`
	Links []string `json:"links"`
}

func preview(cmd *cobra.Command, s config.Settings) (planDoc, error) {
	for i := range s.Sessions {
		s.Sessions[i].Rearm = false // there is nothing to show for a tunnel that is not there
	}
	pr, err := askPreview(cmd.Context(), s)
	switch {
	case errors.Is(err, control.ErrDenied):
		_ = say(cmd.ErrOrStderr(), "culvert: warning: %s: only root may ask a daemon there; if one runs, what it holds is not known to this plan\n", s.Socket)
		pr, err = previewHere(cmd.Context(), s)
	case errors.Is(err, control.ErrAway):
		pr, err = previewHere(cmd.Context(), s)
	}
	if err != nil {
		return planDoc{}, err
	}
	return newPlanDoc(pr, s.Sessions), nil
}

// askPreview asks the daemon. It is as good as away where the routing that it sees to
// is another's.
func askPreview(ctx context.Context, s config.Settings) (enforce.Preview, error) {
	if err := servesHere(ctx, s.Socket); err != nil {
		return enforce.Preview{}, err
	}
	resp, err := control.Ask(ctx, s.Socket, control.Request{Op: control.Plan, Sessions: s.Sessions})
	switch {
	case err != nil:
		return enforce.Preview{}, err
	case resp.Preview == nil:
		return enforce.Preview{}, errAnswer
	}
	return *resp.Preview, nil
}

// previewHere makes the plan of a daemon that would be started now.
func previewHere(ctx context.Context, s config.Settings) (enforce.Preview, error) {
	sys, err := newSystem()
	if err != nil {
		return enforce.Preview{}, err
	}
	defer sys.Close() //nolint:errcheck // only read
	return enforce.PreviewSessions(ctx, sys, s.Sessions, engineOptions(s, nil))
}

func newPlanDoc(pr enforce.Preview, sessions []enforce.Session) planDoc {
	doc := planDoc{Version: 1, Preview: pr, Pinholes: []string{}, Noticed: []notice{}}
	doc.OneFamily = notNil(doc.OneFamily)
	doc.Actions, doc.Missing = notNil(doc.Actions), notNil(doc.Missing)
	doc.Reported, doc.Unenforceable, doc.Notes = notNil(doc.Reported), notNil(doc.Unenforceable), notNil(doc.Notes)
	isTunnel := func(link string) bool {
		return slices.ContainsFunc(sessions, func(s enforce.Session) bool { return s.Tunnel == link })
	}
	for _, a := range pr.Actions {
		switch {
		case a.Kind == "put" && len(a.Links) > 0 && !slices.ContainsFunc(a.Links, isTunnel):
			doc.Pinholes = append(doc.Pinholes, a.Route)
		case a.Kind == "remove":
			if who := whoNotices(a); who != "" {
				doc.Noticed = append(doc.Noticed, notice{who, a.Route, a.Links})
			}
		}
	}
	return doc
}

// bridges are the names that well-known programs give to their interfaces.
var bridges = [...]struct{ prefix, who string }{
	{"docker", "containers (Docker)"},
	{"br-", "containers (a Docker network)"},
	{"podman", "containers (Podman)"},
	{"flannel", "containers (flannel)"},
	{"cali", "containers (Calico)"},
	{"tunl0", "containers of other machines (IPIP, Calico)"},
	{"vxlan", "containers or machines elsewhere (VXLAN)"},
	{"cilium", "containers (Cilium)"},
	{"weave", "containers (Weave)"},
	{"kube", "containers (Kubernetes)"},
	{"cni", "containers (CNI)"},
	{"lxc", "containers (LXC)"},
	{"lxd", "containers (LXD)"},
	{"incusbr", "containers (Incus)"},
	{"veth", "containers (a veth)"},
	{"virbr", "virtual machines (libvirt)"},
	{"vmnet", "virtual machines (VMware)"},
	{"vboxnet", "virtual machines (VirtualBox)"},
}

// whoNotices says who would miss a removed route, or "".
func whoNotices(a enforce.PreviewAction) string {
	for _, link := range a.Links {
		for _, b := range bridges {
			if strings.HasPrefix(link, b.prefix) {
				return b.who + " on " + link
			}
		}
	}
	by := strings.Join(a.Links, ", ")
	switch {
	case a.Default:
		return "everything that uses the default route by " + by
	case a.Connected:
		return "the local network on " + by
	}
	return ""
}

// printPlan writes the plan in groups, the empty ones left out.
func printPlan(w io.Writer, doc planDoc) {
	var removed, put, rejects, noticed, missing, withdrawn, restored, forgotten []string
	for _, a := range doc.Actions {
		line := a.Route + "  (" + a.Reason + ")"
		switch {
		case a.Kind == "remove":
			removed = append(removed, line)
		case a.Kind == "withdraw":
			withdrawn = append(withdrawn, line)
		case a.Kind == "restore":
			restored = append(restored, line)
		case a.Kind == "forget":
			forgotten = append(forgotten, line)
		case a.Kind == "put" && len(a.Links) == 0:
			rejects = append(rejects, a.Route)
		case !slices.Contains(doc.Pinholes, a.Route):
			put = append(put, line)
		}
	}
	for _, n := range doc.Noticed {
		noticed = append(noticed, n.Who+"  ("+n.Route+")")
	}
	for _, p := range doc.Missing {
		isPut := func(line string) bool { return strings.HasPrefix(line, p.String()+" ") }
		if !slices.ContainsFunc(put, isPut) {
			missing = append(missing, p.String())
		}
	}
	if len(doc.Actions) == 0 {
		plain.Fprintln(w, "nothing would change: the table is right")
	}
	group(w, "Would be removed, and given back at the end", removed)
	group(w, "Would be added, as routes of the tunnel", put)
	group(w, "Would be added, as pinholes for the way to the VPN server", doc.Pinholes)
	group(w, "Would be added, to reject what the tunnel leaves out", rejects)
	group(w, "Would be withdrawn, culvert's own", withdrawn)
	group(w, "Held, and would be given back", restored)
	group(w, "Held, and would not come back", forgotten)
	group(w, "Who would notice", noticed)
	group(w, "Protected, but no route into the tunnel can be added now", missing)
	group(w, "Takes protected traffic, and would stay", doc.Reported)
	group(w, "Cannot be enforced by routes", doc.Unenforceable)
	group(w, "Leaves beside the tunnel", doc.OneFamily)
	group(w, "Good to know", doc.Notes)
}

func group(w io.Writer, heading string, lines []string) {
	if len(lines) == 0 {
		return
	}
	plain.Fprintln(w, heading+":")
	for _, line := range lines {
		plain.Fprintln(w, "  "+line)
	}
}

// policyOf reads the flags as a session, or nil when none was given.
func policyOf(cmd *cobra.Command, sess *sessionFlags) (*enforce.Session, error) {
	if !sess.given(cmd.Flags()) {
		return nil, nil
	}
	s, err := sess.text.Parse()
	if err != nil {
		return nil, err
	}
	return &s, session.Check(s)
}

// servesHere asks whose routing the daemon on a socket sees to. One that sees to that
// of another network namespace is as good as away: what it says is not of this one.
func servesHere(ctx context.Context, socket string) error {
	resp, err := control.Ask(ctx, socket, control.Request{Op: control.Ping})
	if err != nil {
		return err
	}
	own, err := binding()
	if err != nil {
		return err
	}
	if resp.Daemon == nil || resp.Daemon.Namespace != own.Namespace {
		return fmt.Errorf("%s: %w for this %s: that one serves another", socket, control.ErrAway, here.Place)
	}
	return nil
}
