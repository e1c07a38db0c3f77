package sandbox

import (
	"fmt"
	"maps"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containers/podman/v5/pkg/specgen"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/network"
	"github.com/opencontainers/runtime-spec/specs-go"
	"go.podman.io/image/v5/manifest"
)

// createRequest is the body of Docker's POST /containers/create.
type createRequest struct {
	*container.Config
	HostConfig       *container.HostConfig
	NetworkingConfig *network.NetworkingConfig
}

// caps are what root of a job's container may: podman's usual ones without those that
// make devices, raw packets, other roots and more capabilities.
var caps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETGID", "CAP_SETUID",
}

const (
	maxMounts    = 64
	defaultTmpfs = 1 << 30 // bytes, where memory is not limited
)

var (
	thingName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,179}$`)
	hexID     = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// rules are what a request is held against.
type rules struct {
	prefix string // of volumes
	memory int64
	cpus   float64
	pids   int64
	// network tells whether a container may ask for that one; it gets the job's.
	network func(mode string) bool
}

// A plan is what is made of a request: what the container shall be, but for what is
// the same for each, and the volumes that it needs, by the names that the job gave.
type plan struct {
	spec    *specgen.SpecGenerator
	volumes []string
	image   string
	health  *container.HealthConfig
	memory  int64
	cpus    float64
	pids    int64
}

// options are the names under which people know fields.
var options = map[string]string{
	"Privileged": "--privileged", "Devices": "--device", "DeviceRequests": "--gpus", "DeviceCgroupRules": "--device-cgroup-rule",
	"PidMode": "--pid", "IpcMode": "--ipc", "UTSMode": "--uts", "UsernsMode": "--userns", "CgroupnsMode": "--cgroupns",
	"NetworkMode": "--network", "CapAdd": "--cap-add", "SecurityOpt": "--security-opt", "Sysctls": "--sysctl",
	"CgroupParent": "--cgroup-parent", "VolumesFrom": "--volumes-from", "Links": "--link", "ExtraHosts": "--add-host",
	"Runtime": "--runtime", "GroupAdd": "--group-add", "StorageOpt": "--storage-opt", "RestartPolicy": "--restart",
	"VolumeDriver": "--volume-driver", "MaskedPaths": "--security-opt systempaths", "ReadonlyPaths": "--security-opt systempaths",
}

// notAllowed refuses a field by its name and that of its option.
func notAllowed(field, why string) error {
	if o := options[field]; o != "" {
		field = o + " (" + field + ")"
	}
	return refused("%s is not allowed in a job%s", field, why)
}

// rewrite builds a plan of what is allowed of a request, and refuses one with more.
func rewrite(req createRequest, r rules) (*plan, error) {
	var c container.Config
	var h container.HostConfig
	if req.Config != nil {
		c = *req.Config
	}
	if req.HostConfig != nil {
		h = *req.HostConfig
	}
	g := specgen.NewSpecGenerator("", false)
	p := &plan{spec: g, image: c.Image, health: c.Healthcheck, memory: r.memory, cpus: r.cpus, pids: r.pids}
	for _, step := range []func() error{
		func() error { return takeConfig(g, &c) },
		func() error { return p.takeLimits(&h) },
		func() error { return takeHost(g, &h, r) },
		func() error { return p.takeMounts(&h, r) },
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	if field := left(reflect.ValueOf(c)); field != "" {
		return nil, notAllowed(field, "")
	}
	if field := left(reflect.ValueOf(h)); field != "" {
		return nil, notAllowed(field, "")
	}
	return p, nil
}

// takeConfig takes what is allowed out of c, and what may be left out.
func takeConfig(g *specgen.SpecGenerator, c *container.Config) error {
	g.Entrypoint, g.Command, g.User, g.WorkDir = c.Entrypoint, c.Cmd, c.User, c.WorkingDir
	g.Terminal, g.Stdin = &c.Tty, &c.OpenStdin
	g.Env = map[string]string{}
	for _, kv := range c.Env {
		name, value, ok := strings.Cut(kv, "=")
		switch {
		case name == "" || strings.ContainsRune(kv, 0):
			return bad("%.100q is no variable", kv)
		case ok:
			g.Env[name] = value
		default: // Docker takes it out of those of the image
			g.UnsetEnv = append(g.UnsetEnv, name)
		}
	}
	if c.Hostname != "" && !hostName.MatchString(c.Hostname) {
		return bad("%.100q is no name of a host", c.Hostname)
	}
	g.Hostname = c.Hostname
	if c.WorkingDir != "" && !path.IsAbs(c.WorkingDir) {
		return bad("working directory %.100q: want an absolute path", c.WorkingDir)
	}
	tty, in := c.Tty, c.OpenStdin
	g.Terminal, g.Stdin = &tty, &in
	c.Image, c.Entrypoint, c.Cmd, c.User, c.WorkingDir, c.Tty, c.OpenStdin, c.Env, c.Hostname, c.Healthcheck = "", nil, nil, "", "", false, false, nil, "", nil
	// Labels of the job's would be taken for ours; volumes without a name are directories
	// of the container, which goes with them; the rest has no meaning here.
	c.Labels, c.Volumes, c.ExposedPorts, c.StopSignal, c.StopTimeout = nil, nil, nil, "", nil
	c.AttachStdin, c.AttachStdout, c.AttachStderr, c.StdinOnce = false, false, false, false
	return nil
}

// takeLimits takes limits that are tighter than ours.
func (p *plan) takeLimits(h *container.HostConfig) error {
	if h.Memory > 0 && (p.memory <= 0 || h.Memory < p.memory) {
		p.memory = h.Memory
	}
	if cpus := float64(h.NanoCPUs) / 1e9; cpus > 0 && (p.cpus <= 0 || cpus < p.cpus) {
		p.cpus = max(cpus, 0.01) // the kernel knows no less, and 0 would be none
	}
	if h.PidsLimit != nil && *h.PidsLimit > 0 && (p.pids <= 0 || *h.PidsLimit < p.pids) {
		p.pids = *h.PidsLimit
	}
	if h.MemorySwappiness != nil && *h.MemorySwappiness == -1 { // not given, says Docker's command line
		h.MemorySwappiness = nil
	}
	if h.ShmSize > 0 {
		size := min(h.ShmSize, p.largest())
		p.spec.ShmSize = &size
	}
	h.Memory, h.NanoCPUs, h.PidsLimit, h.ShmSize = 0, 0, nil, 0
	h.MemoryReservation, h.MemorySwap, h.CPUShares, h.Ulimits = 0, 0, 0, nil
	return nil
}

// largest is how large a file system in memory may be.
func (p *plan) largest() int64 {
	if p.memory > 0 {
		return p.memory
	}
	return defaultTmpfs
}

// takeHost takes what is allowed out of h but for limits and mounts, and what may be
// left out.
func takeHost(g *specgen.SpecGenerator, h *container.HostConfig, r rules) error {
	if h.MaskedPaths != nil || h.ReadonlyPaths != nil { // an empty list unmasks
		return notAllowed("MaskedPaths", "")
	}
	if !r.network(string(h.NetworkMode)) {
		return notAllowed("NetworkMode", fmt.Sprintf(": it is %.100q, and a job has a network of its own", h.NetworkMode))
	}
	readOnly := h.ReadonlyRootfs
	g.ReadOnlyFilesystem = &readOnly
	for _, c := range h.CapAdd {
		if !slices.Contains(caps, capName(c)) {
			return notAllowed("CapAdd", fmt.Sprintf(" with %.50q", c))
		}
	}
	g.CapAdd, g.CapDrop = slices.Clone(caps), []string{"ALL"}
	for _, c := range h.CapDrop {
		g.CapAdd = slices.DeleteFunc(g.CapAdd, func(have string) bool { return have == capName(c) || capName(c) == "CAP_ALL" })
	}
	for _, c := range h.CapAdd {
		if !slices.Contains(g.CapAdd, capName(c)) {
			g.CapAdd = append(g.CapAdd, capName(c))
		}
	}
	h.SecurityOpt = slices.DeleteFunc(slices.Clone(h.SecurityOpt), func(o string) bool { return o == "no-new-privileges" || o == "no-new-privileges:true" })
	for _, mode := range []struct {
		value *string
		same  string
	}{
		{(*string)(&h.IpcMode), "private"}, {(*string)(&h.CgroupnsMode), "private"}, {(*string)(&h.Isolation), "default"}, {&h.VolumeDriver, "local"},
		{(*string)(&h.RestartPolicy.Name), "no"},
	} {
		if *mode.value == mode.same {
			*mode.value = ""
		}
	}
	h.NetworkMode, h.ReadonlyRootfs, h.CapAdd, h.CapDrop = "", false, nil, nil
	h.PortBindings, h.PublishAllPorts, h.AutoRemove, h.LogConfig, h.ConsoleSize, h.Init, h.ContainerIDFile = nil, false, false, container.LogConfig{}, [2]uint{}, nil, ""
	h.DNS, h.DNSOptions, h.DNSSearch = nil, nil, nil
	return nil
}

func capName(c string) string {
	c = strings.ToUpper(c)
	if !strings.HasPrefix(c, "CAP_") {
		c = "CAP_" + c
	}
	return c
}

// takeMounts takes named volumes and file systems in memory.
func (p *plan) takeMounts(h *container.HostConfig, r rules) error {
	if len(h.Binds)+len(h.Mounts)+len(h.Tmpfs) > maxMounts {
		return refused("a container may have %d mounts", maxMounts)
	}
	for _, b := range h.Binds {
		if err := p.takeBind(b, r); err != nil {
			return err
		}
	}
	for _, m := range h.Mounts {
		if err := p.takeMount(m, r); err != nil {
			return err
		}
	}
	for _, target := range slices.Sorted(maps.Keys(h.Tmpfs)) {
		if err := p.tmpfs(target, h.Tmpfs[target]); err != nil {
			return err
		}
	}
	h.Binds, h.Mounts, h.Tmpfs = nil, nil, nil
	return nil
}

func (p *plan) takeBind(bind string, r rules) error {
	parts := strings.Split(bind, ":")
	if len(parts) == 1 && path.IsAbs(bind) {
		return nil // a volume without a name
	}
	if len(parts) < 2 || len(parts) > 3 {
		return bad("%.200q is no volume", bind)
	}
	readOnly := false
	if len(parts) == 3 {
		for _, o := range strings.Split(parts[2], ",") {
			switch o {
			case "ro":
				readOnly = true
			case "rw", "z", "Z":
			default:
				return refused("volume %.200q: option %.50q is not allowed in a job", bind, o)
			}
		}
	}
	return p.volume(parts[0], parts[1], readOnly, r)
}

func (p *plan) takeMount(m mount.Mount, r rules) error {
	kind, source, target, readOnly := m.Type, m.Source, m.Target, m.ReadOnly
	opts := m.TmpfsOptions
	m.Type, m.Source, m.Target, m.ReadOnly, m.Consistency, m.TmpfsOptions = "", "", "", false, "", nil
	if v := m.VolumeOptions; v != nil {
		o := *v
		o.Labels, o.NoCopy = nil, false
		m.VolumeOptions = &o
	}
	if field := left(reflect.ValueOf(m)); field != "" {
		return refused("--mount with %s is not allowed in a job", field)
	}
	switch {
	case kind == mount.TypeVolume && source == "":
		return checkTarget(target)
	case kind == mount.TypeVolume:
		return p.volume(source, target, readOnly, r)
	case kind == mount.TypeTmpfs && source == "":
		text := ""
		if opts != nil && opts.SizeBytes > 0 {
			text = "size=" + strconv.FormatInt(opts.SizeBytes, 10)
		}
		return p.tmpfs(target, text)
	}
	return refused("--mount of type %.20q (%.100q) is not allowed in a job: only volumes by name and tmpfs are", kind, source)
}

func (p *plan) volume(name, target string, readOnly bool, r rules) error {
	if !thingName.MatchString(name) {
		return refused("volume %.200q: a path of the host is not allowed in a job, only a name is", name)
	}
	if err := checkTarget(target); err != nil {
		return err
	}
	mode := "rw"
	if readOnly {
		mode = "ro"
	}
	p.volumes = append(p.volumes, name)
	p.spec.Volumes = append(p.spec.Volumes, &specgen.NamedVolume{Name: r.prefix + name, Dest: target, Options: []string{mode, "nosuid", "nodev"}})
	return nil
}

// tmpfs adds one. Of its options what makes it tighter counts.
func (p *plan) tmpfs(target, opts string) error {
	if err := checkTarget(target); err != nil {
		return err
	}
	size, mode, exec := p.largest(), "rw", "exec"
	for _, o := range strings.Split(opts, ",") {
		name, value, _ := strings.Cut(o, "=")
		switch name {
		case "", "rw", "exec", "nosuid", "nodev", "mode":
		case "ro", "noexec":
			if name == "ro" {
				mode = name
			} else {
				exec = name
			}
		case "size":
			n, err := bytesOf(value)
			if err != nil {
				return err
			}
			size = min(size, n)
		default:
			return refused("tmpfs %.100q: option %.50q is not allowed in a job", target, o)
		}
	}
	p.spec.Mounts = append(p.spec.Mounts, specs.Mount{
		Type: "tmpfs", Source: "tmpfs", Destination: target, Options: []string{mode, exec, "nosuid", "nodev", "mode=1777", fmt.Sprintf("size=%d", size)},
	})
	return nil
}

func bytesOf(text string) (int64, error) {
	unit := int64(1)
	if i := strings.IndexAny(text, "kKmMgG"); i > 0 && i == len(text)-1 {
		unit = map[byte]int64{'k': 1 << 10, 'm': 1 << 20, 'g': 1 << 30}[text[i]|0x20]
		text = text[:i]
	}
	n, err := strconv.ParseInt(text, 10, 32)
	if unit == 1 {
		n, err = strconv.ParseInt(text, 10, 62)
	}
	if err != nil || n <= 0 {
		return 0, bad("%.50q is no size", text)
	}
	return n * unit, nil
}

// checkTarget refuses places that are the kernel's or podman's.
func checkTarget(target string) error {
	if !path.IsAbs(target) || path.Clean(target) != target || strings.ContainsAny(target, "\x00\n,:") {
		return bad("%.200q: want an absolute path to mount at", target)
	}
	for _, no := range []string{"/proc", "/sys", "/dev", "/etc/hosts", "/etc/resolv.conf"} {
		if target == "/" || target == no || strings.HasPrefix(target, no+"/") {
			return refused("a mount at %.200q is not allowed in a job", target)
		}
	}
	return nil
}

// left names a field that says something, "" where none does.
func left(v reflect.Value) string {
	for i := range v.NumField() {
		f, field := v.Field(i), v.Type().Field(i)
		for f.Kind() == reflect.Pointer && !f.IsNil() {
			f = f.Elem()
		}
		if f.Kind() == reflect.Struct {
			if name := left(f); name != "" {
				if field.Anonymous {
					return name
				}
				return field.Name
			}
			continue
		}
		if (f.Kind() == reflect.Slice || f.Kind() == reflect.Map) && f.Len() == 0 || f.IsZero() {
			continue
		}
		return field.Name
	}
	return ""
}

// finish adds what is the same for each container of the job.
func (s *Sandbox) finish(p *plan, name, image string, health *container.HealthConfig) {
	g, yes, no := p.spec, true, false
	g.Name, g.Labels, g.Image, g.CgroupParent = s.prefix(s.task)+"c-"+name, s.labels(s.task), image, s.cgroup
	g.NetNS = specgen.Namespace{NSMode: specgen.FromContainer, Value: s.holder}
	g.Mounts = append(g.Mounts, s.hostFiles()...)
	if g.Hostname == "" {
		g.Hostname = jobHost
	}
	g.PidNS, g.IpcNS, g.UtsNS = private, private, private
	g.NoNewPrivileges, g.Privileged, g.HTTPProxy, g.EnvHost, g.CreateWorkingDir, g.ReadWriteTmpfs = &yes, &no, &no, &no, &yes, &no
	g.SeccompProfilePath = s.cfg.Seccomp
	g.ResourceLimits, g.Rlimits = s.limits(p.memory, p.cpus, p.pids), s.ulimits()
	g.ImageVolumeMode = "ignore"                            // what it declares as volumes would be some without a label
	g.LogConfiguration = &specgen.LogConfig{Driver: "none"} // nobody reads it, and it would fill the disk
	g.StopTimeout = new(uint)
	g.RestartPolicy = "no"
	// Podman would have systemd run the check. We do, when somebody looks.
	g.HealthConfig = &manifest.Schema2HealthConfig{Test: []string{"NONE"}}
	if health != nil {
		g.HealthConfig = &manifest.Schema2HealthConfig{
			Test: health.Test, StartPeriod: health.StartPeriod, Timeout: health.Timeout, Retries: health.Retries,
		}
	}
}

var private = specgen.Namespace{NSMode: specgen.Private}
