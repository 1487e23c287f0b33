package enforce

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/culvert-project/culvert/enforce/plan"
)

// notState are the fields that decide nothing: what is told and counted, what is
// constant, numbers that only grow, indexes of what is said elsewhere, and clocks.
// A field that is not named here is part of the state.
var notState = map[string]bool{}

func init() {
	for in, names := range map[string]string{
		"Enforcer": "sys journal opt log sink calls wakes ready known ended own view lastID names incidents told grouped totals " +
			"contests reported pace done asked closing notBack lives livesAt hinted lookedAt",
		"heldRoutes":    "count at bySlot looks",
		"heldRoute":     "of",
		"Entry":         "ID Place Taken Since",
		"session":       "tally unfit notes oneFamily split",
		"SessionStatus": "",
		"marks":         "store standing",
		"Facts":         "Uptime",
		"Event":         "Seen Done Process counted",
		"Answer":        "tally",
		"Route":         "Raw",
	} {
		for _, name := range strings.Fields(names) {
			notState[in+"."+name] = true
		}
	}
}

// AppendKey appends what decides how the Enforcer goes on.
func (s *Stepper) AppendKey(b []byte) []byte {
	e := s.e
	b = appendSpec(b, e.policy().Spec())
	if s.wanted {
		b = append(b, 'w')
	}
	b = appendPlaces(appendValue(b, reflect.ValueOf(e).Elem()), e)
	for i := range s.told {
		ev := &s.told[i]
		b = appendValue(b, reflect.ValueOf(ev).Elem())
		b = appendBool(b, outlived(ev), e.lookedAt.Before(ev.Seen))
	}
	return b
}

// appendPlaces appends which of the held routes' places comes before which: the numbers
// themselves only grow.
func appendPlaces(b []byte, e *Enforcer) []byte {
	var places []uint64
	for h := range e.held.all() {
		places = append(places, cmp.Or(h.Place, h.ID))
	}
	sorted := slices.Sorted(slices.Values(places))
	for _, p := range places {
		b = append(b, byte(slices.Index(sorted, p)))
	}
	return b
}

func appendBool(b []byte, bits ...bool) []byte {
	for _, x := range bits {
		if x {
			b = append(b, '1')
		} else {
			b = append(b, '0')
		}
	}
	return b
}

func appendSpec(b []byte, spec plan.Spec) []byte {
	v := reflect.New(reflect.TypeOf(spec)).Elem()
	v.Set(reflect.ValueOf(spec))
	return appendValue(b, v)
}

func appendAddr(b []byte, a netip.Addr) []byte {
	if !a.IsValid() {
		return append(b, 0)
	}
	s := a.AsSlice()
	return append(append(b, byte(len(s))), s...)
}

func appendPrefix(b []byte, p netip.Prefix) []byte {
	return append(appendAddr(b, p.Addr()), byte(p.Bits()))
}

// AppendRoute appends all that decides of a route.
func AppendRoute(b []byte, r *plan.Route) []byte {
	b = appendPrefix(b, r.Dst)
	b = appendPrefix(b, r.Src)
	b = appendAddr(b, r.PrefSrc)
	b = appendAddr(b, r.Hop.Via)
	b = append(b, r.More...)
	b = binary.AppendUvarint(b, uint64(r.Hop.Link))
	b = binary.AppendUvarint(b, uint64(r.Metric))
	b = binary.AppendUvarint(b, uint64(r.Expires))
	b = binary.AppendUvarint(b, uint64(r.NexthopID))
	_, extra, _ := strings.Cut(r.Raw, ";")
	b = append(b, extra...)
	return append(appendBool(b, r.Dead, r.AnyGateway), r.TOS, byte(r.Type), r.Protocol, byte(r.Origin), byte(r.Pref))
}

// appendValue appends a value, whatever it is.
func appendValue(b []byte, v reflect.Value) []byte {
	v = open(v)
	switch x := v.Addr().Interface().(type) {
	case *plan.Route:
		return AppendRoute(b, x)
	case *netip.Addr:
		return appendAddr(b, *x)
	case *netip.Prefix:
		return appendPrefix(b, *x)
	case **plan.Policy:
		if *x == nil {
			return append(b, 0)
		}
		return appendSpec(b, (*x).Spec())
	case **plan.Entry:
		if *x == nil {
			return append(b, 0)
		}
		return append(appendPrefix(append(b, 1), (*x).Prefix), byte((*x).Session), byte((*x).Tunnel))
	case *time.Time, *time.Duration:
		return b
	case *error:
		if *x != nil {
			b = append(b, (*x).Error()...)
		}
		return append(b, 0)
	}
	if isAtomicPointer(v.Type()) {
		from := v.Addr().MethodByName("Load").Call(nil)[0]
		v = reflect.New(from.Type()).Elem()
		v.Set(from)
	}
	switch v.Kind() {
	case reflect.Bool:
		return appendBool(b, v.Bool())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return binary.AppendVarint(b, v.Int())
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return binary.AppendUvarint(b, v.Uint())
	case reflect.String:
		return append(append(b, v.String()...), 0)
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return append(b, 0)
		}
		if v.Kind() == reflect.Interface {
			return append(b, 1)
		}
		return appendValue(append(b, 1), v.Elem())
	case reflect.Slice, reflect.Array:
		b = binary.AppendUvarint(b, uint64(v.Len()))
		for i := range v.Len() {
			b = appendValue(b, v.Index(i))
		}
	case reflect.Map:
		return appendMap(b, v)
	case reflect.Struct:
		t := v.Type()
		for i := range t.NumField() {
			if !notState[t.Name()+"."+t.Field(i).Name] {
				b = appendValue(b, v.Field(i))
			}
		}
	}
	return b
}

func appendMap(b []byte, v reflect.Value) []byte {
	var list [][]byte
	for it := v.MapRange(); it.Next(); {
		var one []byte
		for _, x := range []reflect.Value{it.Key(), it.Value()} {
			at := reflect.New(x.Type()).Elem()
			at.Set(x)
			one = appendValue(one, at)
		}
		list = append(list, one)
	}
	slices.SortFunc(list, func(a, b []byte) int { return cmp.Compare(bytes.Compare(a, b), 0) })
	b = binary.AppendUvarint(b, uint64(len(list)))
	for _, one := range list {
		b = append(b, one...)
	}
	return b
}
