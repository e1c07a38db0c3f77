package devcontainer

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/tailscale/hujson"
)

// HostRequirements are what the file wants at least; 0 is no word about it.
type HostRequirements struct {
	CPUs    int64 `json:"cpus,omitempty"`
	Memory  int64 `json:"memory,omitempty"`  // bytes
	Storage int64 `json:"storage,omitempty"` // bytes
	GPU     bool  `json:"gpu,omitempty"`     // one that is optional is not wanted here
}

// Limits are what a container is given; 0 is no limit that is known.
type Limits struct {
	CPUs            float64
	Memory, Storage int64 // bytes
	GPU             bool
}

// Check is an error that names what is less than wanted.
func (h HostRequirements) Check(have Limits) error {
	var lacking []string
	if have.CPUs > 0 && float64(h.CPUs) > have.CPUs {
		lacking = append(lacking, fmt.Sprintf("cpus: %d are wanted, %s are there", h.CPUs, strconv.FormatFloat(have.CPUs, 'g', 3, 64)))
	}
	if have.Memory > 0 && h.Memory > have.Memory {
		lacking = append(lacking, fmt.Sprintf("memory: %s are wanted, %s are there", size(h.Memory), size(have.Memory)))
	}
	if have.Storage > 0 && h.Storage > have.Storage {
		lacking = append(lacking, fmt.Sprintf("storage: %s are wanted, %s are there", size(h.Storage), size(have.Storage)))
	}
	if h.GPU && !have.GPU {
		lacking = append(lacking, "gpu: pods have none")
	}
	if len(lacking) > 0 {
		return fmt.Errorf("hostRequirements: %s; give agents more, or ask for less", strings.Join(lacking, "; "))
	}
	return nil
}

func size(n int64) string {
	for _, u := range []struct {
		name  string
		bytes int64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= u.bytes {
			return strconv.FormatFloat(float64(n)/float64(u.bytes), 'g', 5, 64) + " " + u.name
		}
	}
	return fmt.Sprintf("%d bytes", n)
}

var amount = regexp.MustCompile(`^(\d{1,15})([kmgt]b)?$`)

// bytesOf reads an amount such as 8gb. The reference does not say whether a kb is
// 1000 or 1024 bytes; what containers are given is told in the latter.
func (r *reader) bytesOf(v hujson.Value, key string) int64 {
	m := amount.FindStringSubmatch(strings.ToLower(r.str(v, key)))
	if m == nil {
		r.fail(v, key, "want an amount with kb, mb, gb or tb, like \"8gb\"")
		return 0
	}
	n, _ := strconv.ParseInt(m[1], 10, 64) // at most 15 digits
	shift := map[string]uint{"": 0, "kb": 10, "mb": 20, "gb": 30, "tb": 40}[m[2]]
	if n > (1<<62)>>shift {
		r.fail(v, key, "that is more than there is anywhere")
		return 0
	}
	return n << shift
}

func (r *reader) hostRequirements(key string, v hujson.Value) {
	h := &r.c.HostRequirements
	for _, m := range r.members(v, key) {
		at := key + "." + m.key
		switch m.key {
		case "cpus":
			h.CPUs = r.integer(m.value, at, 1<<20)
		case "memory":
			h.Memory = r.bytesOf(m.value, at)
		case "storage":
			h.Storage = r.bytesOf(m.value, at)
		case "gpu":
			h.GPU = r.gpu(m.value, at)
		default:
			r.unknown(at)
		}
	}
}

func (r *reader) gpu(v hujson.Value, key string) bool {
	switch kind(v) {
	case '"':
		r.oneOf(v, key, "optional")
		return false
	case '{':
		for _, m := range r.members(v, key) {
			switch at := key + "." + m.key; m.key {
			case "cores":
				r.integer(m.value, at, 1<<30)
			case "memory":
				r.bytesOf(m.value, at)
			default:
				r.unknown(at)
			}
		}
		return true
	}
	return r.boolean(v, key)
}
