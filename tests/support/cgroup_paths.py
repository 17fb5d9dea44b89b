"""Contents of /proc/PID/cgroup as the cgroup drivers and runtimes write them: name, file, container id, pod uid."""

CONTAINER = "4f1c" * 16
OUTER = "0b7e" * 16
POD = "8a3f0c1d-52b7-4b5c-9e0e-6f2d1a7c3b94"
POD_UNDERSCORED = POD.replace("-", "_")
STATIC_POD = "d41d8cd98f00b204e9800998ecf8427e"

CGROUP_FILES: list[tuple[str, bytes, str, str]] = [
    (
        "v2, systemd driver, containerd",
        f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{POD_UNDERSCORED}.slice"
        f"/cri-containerd-{CONTAINER}.scope\n".encode(),
        CONTAINER,
        POD,
    ),
    (
        "v2, systemd driver, CRI-O, guaranteed",
        f"0::/kubepods.slice/kubepods-pod{POD_UNDERSCORED}.slice/crio-{CONTAINER}.scope\n".encode(),
        CONTAINER,
        POD,
    ),
    (
        "v2, systemd driver, CRI-O, a cgroup made inside the container",
        f"0::/kubepods.slice/kubepods-pod{POD_UNDERSCORED}.slice/crio-{CONTAINER}.scope/container\n".encode(),
        CONTAINER,
        POD,
    ),
    (
        "v1, systemd driver, docker",
        f"11:memory:/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{POD_UNDERSCORED}.slice"
        f"/docker-{CONTAINER}.scope\n1:name=systemd:/other\n".encode(),
        CONTAINER,
        POD,
    ),
    (
        "v1, cgroupfs driver",
        f"9:name=systemd:/kubepods/besteffort/pod{POD}/{CONTAINER}\n"
        f"4:memory:/kubepods/besteffort/pod{POD}/{CONTAINER}\n0::/\n".encode(),
        CONTAINER,
        POD,
    ),
    (
        "v1 without a memory hierarchy: the name=systemd line is used",
        f"3:cpu,cpuacct:/\n1:name=systemd:/kubepods/pod{POD}/{CONTAINER}\n".encode(),
        CONTAINER,
        POD,
    ),
    (
        "v1 with controllers mounted together",
        f"2:cpuset,memory:/kubepods/pod{POD}/{CONTAINER}\n".encode(),
        CONTAINER,
        POD,
    ),
    (
        "v2, cgroupfs driver, seen from a cgroup namespace of another pod",
        f"0::/../../burstable/pod{POD}/{CONTAINER}\n".encode(),
        CONTAINER,
        POD,
    ),
    (
        "drivers at odds: systemd for kubelet, cgroupfs for containerd",
        f"0::/system.slice/containerd.service/kubepods-burstable-pod{POD_UNDERSCORED}.slice"
        f":cri-containerd:{CONTAINER}\n".encode(),
        CONTAINER,
        POD,
    ),
    (
        "a node that is itself a docker container",
        f"0::/docker/{OUTER}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{POD_UNDERSCORED}.slice"
        f"/cri-containerd-{CONTAINER}.scope\n".encode(),
        CONTAINER,
        POD,
    ),
    (
        "docker inside a pod: the pod's own container is what the API knows",
        f"0::/kubepods/pod{POD}/{CONTAINER}/docker/{OUTER}\n".encode(),
        CONTAINER,
        POD,
    ),
    (
        "a static pod, whose uid is a hash",
        f"0::/kubepods/burstable/pod{STATIC_POD}/{CONTAINER}\n".encode(),
        CONTAINER,
        STATIC_POD,
    ),
    ("a container of no pod", f"0::/system.slice/docker-{CONTAINER}.scope\n".encode(), CONTAINER, ""),
    ("a service", b"0::/system.slice/kubelet.service\n", "", ""),
    ("a hybrid host outside any container", b"9:name=systemd:/\n4:memory:/session/83e0bd7c\n0::/\n", "", ""),
    ("a name that only looks like a pod", f"0::/tripod{POD}/x\n".encode(), "", ""),
    ("a deleted cgroup", f"0::/kubepods/pod{POD}/{CONTAINER} (deleted)\n".encode(), CONTAINER, POD),
    ("a newline in a name of somebody's own", b"0::/a\\nb\n", "", ""),
]
