package enforce_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
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
		libs: []string{"github.com/mdlayher/netlink", "golang.org/x/sys"}},
	{folder: "enforce/pfroute", ours: []string{"enforce", "enforce/plan"},
		libs: []string{"golang.org/x/net/route", "golang.org/x/sys"}},
	{folder: "enforce/winroute", ours: []string{"enforce", "enforce/plan"}, libs: []string{"golang.org/x/sys"}},
	{folder: "loader", libs: []string{"github.com/cilium/ebpf", "github.com/vishvananda/netlink", "golang.org/x/sys"}},
	{folder: "testenv", ours: []string{"testenv"},
		libs: []string{"github.com/mdlayher/netlink", "github.com/vishvananda/netlink", "golang.org/x/sys", "golang.org/x/net"}},
	{folder: "cmd/culvert", ours: []string{"cmd/culvert", "enforce", "enforce/plan", "enforce/rtnl", "enforce/pfroute", "enforce/winroute", "loader"},
		libs: []string{"github.com/spf13/cobra", "github.com/spf13/pflag", "github.com/goccy/go-yaml", "github.com/coreos/go-systemd", "github.com/Microsoft/go-winio", "golang.org/x/sys", "golang.zx2c4.com/wireguard/wgctrl"}},
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
	eachImport(t, func(path string, l *layer, name string) {
		if !l.allows(name) {
			t.Errorf("%s imports %s, which %s may not", path, name, l.folder)
		}
	})
}

// TestAllowancesAreUsed: what nobody imports need not be allowed.
func TestAllowancesAreUsed(t *testing.T) {
	used := map[*layer]map[string]bool{}
	eachImport(t, func(_ string, l *layer, name string) {
		if used[l] == nil {
			used[l] = map[string]bool{}
		}
		used[l][name] = true
	})
	for i := range layers {
		l := &layers[i]
		allowed := slices.Concat(l.libs, l.only)
		for _, folder := range l.ours {
			allowed = append(allowed, module+folder)
		}
		for _, want := range allowed {
			if !slices.ContainsFunc(slices.Collect(maps.Keys(used[l])), func(name string) bool { return within(name, want) }) {
				t.Errorf("%s may import %s, and does not", l.folder, want)
			}
		}
	}
}

// eachImport calls f for each import of each file that is no test.
func eachImport(t *testing.T, f func(path string, l *layer, name string)) {
	t.Helper()
	files := 0
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		files++
		rel, _ := filepath.Rel("..", path)
		l := layerOf(filepath.ToSlash(filepath.Dir(rel)))
		if l == nil {
			t.Errorf("%s: its folder is in no layer", path)
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, imp := range file.Imports {
			name, _ := strconv.Unquote(imp.Path.Value)
			f(path, l, name)
		}
		return nil
	})
	if err != nil || files < 50 {
		t.Fatalf("read %d files: %v", files, err)
	}
}

// within reports whether an import path is the other, or lies in it.
func within(name, in string) bool { return name == in || strings.HasPrefix(name, in+"/") }

func (l *layer) allows(name string) bool {
	if ours, ok := strings.CutPrefix(name, module); ok {
		to := layerOf(ours)
		return to != nil && (to == l && l.folder != "enforce" || slices.Contains(l.ours, to.folder))
	}
	if strings.Contains(strings.SplitN(name, "/", 2)[0], ".") {
		return slices.ContainsFunc(l.libs, func(p string) bool { return within(name, p) })
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
