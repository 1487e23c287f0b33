package main

import (
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/culvert-project/culvert/cmd/culvert/internal/config"
	"github.com/culvert-project/culvert/cmd/culvert/internal/plain"
	"github.com/culvert-project/culvert/cmd/culvert/internal/session"
	"github.com/culvert-project/culvert/enforce"
)

const planLong = `Show what opening the session would do to the main table now, and who would
notice. Nothing is changed, no daemon is asked, and no privilege is needed.

With --config the sessions of that file are taken, and the one that the flags
describe besides.

--json prints one document:

  version               1
  actions[]             in the order they would be carried out
    kind                put or remove
    route, reason       in words
    links[]             interfaces that the route leaves by
    default, connected  what kind of route it is
  pinholes[]            routes among the put ones that keep the VPN server reachable
  missing[]             protected prefixes without a route into the tunnel
  reported[]            routes that take protected traffic and would stay
  unenforceable[]       what routing cannot protect
  notes[]               this host's own addresses among the protected ones
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
	if err := setChanged(cmd.Flags(), &s, "keep-unreachable"); err != nil {
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
	sys, err := newSystem()
	if err != nil {
		return planDoc{}, err
	}
	defer sys.Close() //nolint:errcheck // only read
	for i := range s.Sessions {
		s.Sessions[i].Rearm = false // there is nothing to show for a tunnel that is not there
	}
	pr, err := enforce.PreviewSessions(cmd.Context(), sys, s.Sessions, engineOptions(s, nil))
	if err != nil {
		return planDoc{}, err
	}
	return newPlanDoc(pr, s.Sessions), nil
}

func newPlanDoc(pr enforce.Preview, sessions []enforce.Session) planDoc {
	doc := planDoc{Version: 1, Preview: pr, Pinholes: []string{}, Noticed: []notice{}}
	doc.Actions, doc.Missing = notNil(doc.Actions), notNil(doc.Missing)
	doc.Reported, doc.Unenforceable, doc.Notes = notNil(doc.Reported), notNil(doc.Unenforceable), notNil(doc.Notes)
	isTunnel := func(link string) bool {
		return slices.ContainsFunc(sessions, func(s enforce.Session) bool { return s.Tunnel == link })
	}
	for _, a := range pr.Actions {
		switch {
		case a.Kind == "put" && !slices.ContainsFunc(a.Links, isTunnel):
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
	{"cni", "containers (CNI)"},
	{"lxc", "containers (LXC)"},
	{"lxd", "containers (LXD)"},
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
	var removed, put, noticed, missing []string
	for _, a := range doc.Actions {
		line := a.Route + "  (" + a.Reason + ")"
		switch {
		case a.Kind == "remove":
			removed = append(removed, line)
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
	group(w, "Who would notice", noticed)
	group(w, "Protected, but no route into the tunnel can be added now", missing)
	group(w, "Takes protected traffic, and would stay", doc.Reported)
	group(w, "Cannot be enforced by routes", doc.Unenforceable)
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
