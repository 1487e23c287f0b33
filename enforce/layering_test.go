package enforce_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/culvert-project/culvert/"

// layer is a package of ours, by its folder: what of ours it may import, and
// which libraries are its alone. Files that end in _test.go may import more.
type layer struct {
	folder string
	ours   []string // prefixes of folders
	libs   []string // prefixes of import paths outside the standard library
	only   []string // when not nil: the only standard packages it may import
}

var layers = []layer{
	{folder: "enforce/plan", libs: []string{"github.com/gaissmai/bart"},
		only: []string{"cmp", "iter", "maps", "net/netip", "slices", "strings"}},
	{folder: "enforce", ours: []string{"enforce/plan"}},
	{folder: "enforce/enforcetest", ours: []string{"enforce", "enforce/plan"}},
	{folder: "enforce/rtnl", ours: []string{"enforce", "enforce/plan"},
		libs: []string{"github.com/mdlayher/netlink", "github.com/vishvananda/netlink", "golang.org/x/sys"}},
	{folder: "enforce/pfroute", ours: []string{"enforce", "enforce/plan"},
		libs: []string{"golang.org/x/net/route", "golang.org/x/sys"}},
	{folder: "enforce/winroute", ours: []string{"enforce", "enforce/plan"}, libs: []string{"golang.org/x/sys"}},
	{folder: "loader", libs: []string{"github.com/cilium/ebpf", "github.com/vishvananda/netlink", "golang.org/x/sys"}},
	{folder: "testenv", ours: []string{"testenv"},
		libs: []string{"github.com/mdlayher/netlink", "github.com/vishvananda/netlink", "golang.org/x/sys", "golang.org/x/net"}},
	{folder: "cmd/culvert", ours: []string{"cmd/culvert", "enforce", "enforce/plan", "enforce/rtnl", "enforce/pfroute", "enforce/winroute", "loader"},
		libs: []string{"github.com/spf13/cobra", "github.com/spf13/pflag", "github.com/goccy/go-yaml", "github.com/coreos/go-systemd", "github.com/prometheus/client_golang", "github.com/Microsoft/go-winio", "golang.org/x/sys", "golang.zx2c4.com/wireguard/wgctrl"}},
}

// layerOf returns the layer of a folder: the longest that contains it.
func layerOf(folder string) *layer {
	var best *layer
	for i := range layers {
		l := &layers[i]
		if (folder == l.folder || strings.HasPrefix(folder, l.folder+"/")) && (best == nil || len(l.folder) > len(best.folder)) {
			best = l
		}
	}
	return best
}

// TestLayers holds every file to the direction that the layers point in, on
// every system that it is built for.
func TestLayers(t *testing.T) {
	files := 0
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		files++
		rel, _ := filepath.Rel("..", path)
		checkImports(t, path, filepath.ToSlash(filepath.Dir(rel)))
		return nil
	})
	if err != nil || files < 50 {
		t.Fatalf("read %d files: %v", files, err)
	}
}

func checkImports(t *testing.T, path, folder string) {
	l := layerOf(folder)
	if l == nil {
		t.Errorf("%s: its folder is in no layer", path)
		return
	}
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	for _, imp := range f.Imports {
		name, _ := strconv.Unquote(imp.Path.Value)
		if !l.allows(name) {
			t.Errorf("%s imports %s, which %s may not", path, name, l.folder)
		}
	}
}

func (l *layer) allows(name string) bool {
	if ours, ok := strings.CutPrefix(name, module); ok {
		to := layerOf(ours)
		return to != nil && (to == l && l.folder != "enforce" || slices.Contains(l.ours, to.folder))
	}
	if strings.Contains(strings.SplitN(name, "/", 2)[0], ".") {
		return slices.ContainsFunc(l.libs, func(p string) bool { return name == p || strings.HasPrefix(name, p+"/") })
	}
	return l.only == nil || slices.Contains(l.only, name)
}

// TestLayersCanFail makes sure that the check finds what it is there for.
func TestLayersCanFail(t *testing.T) {
	for _, c := range [][2]string{
		{"enforce/plan", "time"}, {"enforce/plan", "errors"}, {"enforce", module + "enforce/rtnl"},
		{"enforce", module + "loader"}, {"loader", module + "enforce"}, {"testenv", module + "enforce/plan"},
		{"enforce/rtnl", module + "testenv"}, {"cmd/culvert/internal/x", module + "testenv"},
		{"enforce", "github.com/vishvananda/netlink"}, {"cmd/culvert", "github.com/cilium/ebpf"},
	} {
		if layerOf(c[0]).allows(c[1]) {
			t.Errorf("%s may import %s", c[0], c[1])
		}
	}
}
