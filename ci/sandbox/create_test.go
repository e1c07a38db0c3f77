package sandbox_test

import (
	"path"
	"slices"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/ci/sandbox"
)

func noNetwork(mode string) bool { return mode == "" || mode == "bridge" }

func TestWhatIsRefusedOfAContainer(t *testing.T) {
	for body, want := range map[string]string{
		`{"HostConfig":{"Privileged":true}}`:                                          "--privileged",
		`{"hostconfig":{"PRIVILEGED":true}}`:                                          "--privileged",
		`{"HostConfig":{"Privileged":false,"privileged":true}}`:                       "--privileged",
		`{"HostConfig":{"Privileged":false},"hostConfig":{"Privileged":true}}`:        "--privileged",
		`{"HostConfig":{"Binds":["/:/host"]}}`:                                        "path of the host",
		`{"HostConfig":{"Binds":["/var/run/docker.sock:/var/run/docker.sock"]}}`:      "path of the host",
		`{"HostConfig":{"Binds":["../x:/host"]}}`:                                     "path of the host",
		`{"HostConfig":{"Binds":["v:/proc/x"]}}`:                                      "/proc/x",
		`{"HostConfig":{"Binds":["v:/x:rshared"]}}`:                                   "rshared",
		`{"HostConfig":{"Binds":["v:/x:dev,suid"]}}`:                                  "dev",
		`{"HostConfig":{"Mounts":[{"Type":"bind","Source":"/","Target":"/host"}]}}`:   "bind",
		`{"HostConfig":{"Mounts":[{"Type":"image","Source":"x","Target":"/host"}]}}`:  "image",
		`{"HostConfig":{"Mounts":[{"Type":"volume","Source":"/","Target":"/host"}]}}`: "path of the host",
		`{"HostConfig":{"Mounts":[{"Type":"volume","Source":"v","Target":"/x","VolumeOptions":{"DriverConfig":{"Name":"local","Options":{"device":"/"}}}}]}}`: "VolumeOptions",
		`{"HostConfig":{"Mounts":[{"Type":"volume","Source":"v","Target":"/x","VolumeOptions":{"Subpath":"../.."}}]}}`:                                        "VolumeOptions",
		`{"HostConfig":{"Tmpfs":{"/x":"uid=0,suid"}}}`:               "uid=0",
		`{"HostConfig":{"NetworkMode":"host"}}`:                      "--network",
		`{"HostConfig":{"NetworkMode":"container:abc"}}`:             "--network",
		`{"HostConfig":{"NetworkMode":"ns:/proc/1/ns/net"}}`:         "--network",
		`{"HostConfig":{"PidMode":"host"}}`:                          "--pid",
		`{"HostConfig":{"IpcMode":"host"}}`:                          "--ipc",
		`{"HostConfig":{"IpcMode":"container:abc"}}`:                 "--ipc",
		`{"HostConfig":{"UTSMode":"host"}}`:                          "--uts",
		`{"HostConfig":{"UsernsMode":"host"}}`:                       "--userns",
		`{"HostConfig":{"CgroupnsMode":"host"}}`:                     "--cgroupns",
		`{"HostConfig":{"Cgroup":"x"}}`:                              "Cgroup",
		`{"HostConfig":{"CgroupParent":"/"}}`:                        "--cgroup-parent",
		`{"HostConfig":{"Devices":[{"PathOnHost":"/dev/sda"}]}}`:     "--device",
		`{"HostConfig":{"DeviceCgroupRules":["a *:* rwm"]}}`:         "--device-cgroup-rule",
		`{"HostConfig":{"DeviceRequests":[{"Driver":"nvidia"}]}}`:    "--gpus",
		`{"HostConfig":{"CapAdd":["SYS_ADMIN"]}}`:                    "--cap-add",
		`{"HostConfig":{"CapAdd":["ALL"]}}`:                          "--cap-add",
		`{"HostConfig":{"SecurityOpt":["seccomp=unconfined"]}}`:      "--security-opt",
		`{"HostConfig":{"SecurityOpt":["no-new-privileges:false"]}}`: "--security-opt",
		`{"HostConfig":{"MaskedPaths":[]}}`:                          "systempaths",
		`{"HostConfig":{"ReadonlyPaths":[]}}`:                        "systempaths",
		`{"HostConfig":{"Sysctls":{"kernel.core_pattern":"|/x"}}}`:   "--sysctl",
		`{"HostConfig":{"VolumesFrom":["other"]}}`:                   "--volumes-from",
		`{"HostConfig":{"VolumeDriver":"x"}}`:                        "--volume-driver",
		`{"HostConfig":{"Links":["other:x"]}}`:                       "--link",
		`{"HostConfig":{"ExtraHosts":["x:1.2.3.4"]}}`:                "--add-host",
		`{"HostConfig":{"Runtime":"/bin/sh"}}`:                       "--runtime",
		`{"HostConfig":{"GroupAdd":["0"]}}`:                          "--group-add",
		`{"HostConfig":{"StorageOpt":{"size":"1T"}}}`:                "--storage-opt",
		`{"HostConfig":{"RestartPolicy":{"Name":"always"}}}`:         "--restart",
		`{"HostConfig":{"Annotations":{"run.oci.hooks":"x"}}}`:       "Annotations",
		`{"HostConfig":{"OomKillDisable":true}}`:                     "OomKillDisable",
		`{"HostConfig":{"OomScoreAdj":-1000}}`:                       "OomScoreAdj",
		`{"HostConfig":{"CpuQuota":-1}}`:                             "CPUQuota",
		`{"HostConfig":{"Unheard":1}}`:                               "unknown field",
		`{"Env":["=x"]}`:                                             "no variable",
		`{"WorkingDir":"x"}`:                                         "absolute",
		`{"Hostname":"a\nb"}`:                                        "name of a host",
		`{} {}`:                                                      "follows",
		`[]`:                                                         "cannot unmarshal",
	} {
		if _, err := sandbox.Rewrite([]byte(body), noNetwork); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", body, err, want)
		}
	}
}

func TestWhatIsLeftOutOfAContainer(t *testing.T) {
	spec, err := sandbox.Rewrite([]byte(`{"Image":"x","Labels":{"devaipod.pod":"y"},"ExposedPorts":{"80/tcp":{}},"Volumes":{"/v":{}},"Env":["A=1","PATH"],
		"HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"80"}]},"NetworkMode":"bridge","Binds":["/anonymous","v:/x:ro"],"AutoRemove":true,
		"Memory":1048576,"NanoCpus":9000000000,"PidsLimit":-1,"CapDrop":["CHOWN"],"MemorySwappiness":-1,"Dns":["1.1.1.1"],"Init":true,"ShmSize":9000000000}}`), noNetwork)
	if err != nil {
		t.Fatal(err)
	}
	if len(spec.PortMappings) != 0 || spec.Labels["devaipod.pod"] != "" || len(spec.DNSServers) != 0 || spec.Env["A"] != "1" || !slices.Equal(spec.UnsetEnv, []string{"PATH"}) {
		t.Errorf("%+v", spec)
	}
	if len(spec.Volumes) != 1 || spec.Volumes[0].Name != "pre-v" || spec.Volumes[0].Options[0] != "ro" || slices.Contains(spec.CapAdd, "CAP_CHOWN") {
		t.Errorf("%+v", spec)
	}
	if r := spec.ResourceLimits; *r.Memory.Limit != 1<<20 || r.Pids.Limit != 100 || *r.CPU.Quota != 200_000 || *spec.ShmSize != 1<<20 {
		t.Errorf("%+v", r)
	}
}

// Whatever a job asks for, what goes on to podman is within what it may have.
func FuzzRewrite(f *testing.F) {
	f.Add([]byte(`{"Image":"x","Cmd":["a"],"Env":["A=b"],"HostConfig":{"Binds":["v:/x"],"Tmpfs":{"/t":"size=1m"},"Mounts":[{"Type":"volume","Source":"w","Target":"/w"},{"Type":"tmpfs","Target":"/u"}],"CapAdd":["chown"]}}`))
	f.Add([]byte(`{"hostconfig":{"privileged":true,"Memory":-1,"PidsLimit":0,"ShmSize":-1,"NanoCpus":1}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		s, err := sandbox.Rewrite(body, noNetwork)
		if err != nil {
			return
		}
		if *s.Privileged || !*s.NoNewPrivileges || *s.EnvHost || s.SeccompProfilePath != "/seccomp.json" || s.NetNS.Value != "the-holder" || s.NetNS.NSMode != "container" ||
			s.PidNS.NSMode != "private" || s.IpcNS.NSMode != "private" || s.UtsNS.NSMode != "private" || !s.UserNS.IsDefault() && s.UserNS.NSMode != "" || s.CgroupParent != "" || s.RestartPolicy != "no" {
			t.Errorf("%s: %+v", body, s)
		}
		if len(s.Devices)+len(s.DeviceCgroupRule)+len(s.Sysctl)+len(s.VolumesFrom)+len(s.PortMappings)+len(s.ImageVolumes)+len(s.OverlayVolumes)+len(s.HostAdd)+len(s.Annotations)+len(s.Groups)+len(s.Unmask)+len(s.Secrets) > 0 || len(s.Labels) != 2 {
			t.Errorf("%s: %+v", body, s)
		}
		if !slices.Equal(s.CapDrop, []string{"ALL"}) || slices.ContainsFunc(s.CapAdd, func(c string) bool { return !slices.Contains(sandbox.Caps, c) }) {
			t.Errorf("%s: capabilities %q", body, s.CapAdd)
		}
		if r := s.ResourceLimits; *r.Memory.Limit <= 0 || *r.Memory.Limit > 1<<30 || *r.CPU.Quota > 200_000 || *r.CPU.Quota < 1000 || r.Pids.Limit <= 0 || r.Pids.Limit > 100 || len(r.Devices) > 0 || s.ShmSize != nil && (*s.ShmSize <= 0 || *s.ShmSize > 1<<30) {
			t.Errorf("%s: limits %+v", body, r)
		}
		for _, v := range s.Volumes {
			if !strings.HasPrefix(v.Name, "pre-") || strings.ContainsAny(v.Name, "/: ") || v.SubPath != "" || path.Clean(v.Dest) != v.Dest {
				t.Errorf("%s: volume %+v", body, v)
			}
		}
		for _, m := range s.Mounts {
			if m.Type != "tmpfs" && m.Source != "/dir/hosts" && m.Source != "/dir/resolv.conf" {
				t.Errorf("%s: mount %+v", body, m)
			}
		}
	})
}
