"""What `ctr` is asked, section by section. The same words for every daemon."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.suites.ctr_session import Session

IMAGE = "docker.io/library/bb:1"


def play(ctr: Session, sections: Sequence[Section]) -> None:
    """Sections, in order: later ones use what earlier ones made."""
    for section in sections:
        ctr.section(section.__name__)
        section(ctr)


def daemon(ctr: Session) -> None:
    """Version, plugins, namespaces."""
    ctr("version")
    ctr("info")
    ctr("plugins ls", sort=True)
    ctr("plugins ls -q type==io.containerd.snapshotter.v1", sort=True)
    ctr("plugins ls -d id==overlayfs")
    ctr("deprecations list")
    ctr("namespaces create foo a=b c=d")
    ctr("namespaces create foo")
    ctr("namespaces create ../foo")
    ctr("namespaces label foo a=")
    ctr("namespaces ls")
    ctr("namespaces ls -q")
    ctr("-n foo containers ls")
    ctr("namespaces rm foo")
    ctr("namespaces rm foo")
    ctr("namespaces label foo a=b")


def images(ctr: Session) -> None:
    """Import, tag, check, mount, export, usage, removal."""
    archive = ctr.work / "image.tar"
    ctr(f"images import {archive}")
    ctr(f"images import --no-unpack --base-name other --digests {archive}", sort=True)
    ctr("images ls")
    ctr("content ls -q", sort=True)
    ctr("images ls -q name==" + IMAGE)
    ctr("images ls =")
    ctr("images check")
    ctr("images check -q")
    ctr(f"images tag {IMAGE} x:2")
    ctr(f"images tag {IMAGE} x:2")
    ctr(f"images tag --force {IMAGE} x:2 x:3")
    ctr("images tag nothing y:1")
    ctr("images label x:2 k=v")
    ctr("images label x:2 k=")
    ctr("images label nothing k=v")
    ctr("images ls -q")
    ctr(f"images usage {IMAGE}")
    ctr("images usage nothing")
    ctr(f"images export {ctr.work}/out.tar {IMAGE}")
    ctr.note("the archive", 0, hashlib.sha256((ctr.work / "out.tar").read_bytes()).hexdigest())
    ctr(f"images export --skip-manifest-json {ctr.work}/out2.tar {IMAGE} x:2")
    ctr(f"images export {ctr.work}/out3.tar nothing")
    ctr("images rm x:2 x:3")
    ctr("images rm x:2")
    ctr(f"images import --index-name whole {ctr.work}/out2.tar")
    ctr("images ls -q")
    ctr("images rm --sync whole x:2")
    mounted = ctr.work / "mounted"
    mounted.mkdir()
    ctr(f"images mount {IMAGE} {mounted}")
    ctr.note("its files", 0, "\n".join(sorted(path.name for path in mounted.iterdir())))
    ctr(f"images unmount --rm {mounted}")
    ctr(f"images mount --rw {IMAGE} {mounted}")
    (mounted / "new").write_text("new")
    ctr(f"images unmount --rm {mounted}")
    ctr(f"images mount nothing {mounted}")
    ctr(f"images convert --oci --uncompress {IMAGE} oci:1")
    ctr("images ls name==oci:1")
    ctr("images import /dev/null")
    ctr(f"images import {ctr.work}/nothing.tar")
    ctr("images rm oci:1")


def transfers(ctr: Session) -> None:
    """The same by the daemon's Transfer service."""
    archive = ctr.work / "image.tar"
    ctr.silently(f"images import --local=false --no-unpack --base-name moved --digests {archive}")
    ctr("images ls -q")
    ctr.silently(f"images import --local=false --index-name moved:index {archive}")
    ctr.silently(f"images import --local=false --index-name moved:index {ctr.work}/out2.tar")
    ctr("images ls")
    ctr("images check")
    ctr("content ls -q", sort=True)
    digest = ctr.quietly("images ls name==moved:index").split("sha256:")[1].split()[0]
    ctr(f"content get sha256:{digest}")
    ctr("images tag --local=false moved:index moved:3 moved:4")
    ctr("images tag --local=false nothing moved:5")
    ctr("images ls -q")
    ctr.silently(f"images export --local=false {ctr.work}/out4.tar {IMAGE}")
    with tarfile.open(ctr.work / "out4.tar") as exported:
        ctr.note("its files", 0, "\n".join(f"{each.name} {each.mode:o} {each.size}" for each in exported))
        for name in ("index.json", "manifest.json", "oci-layout"):
            member = exported.extractfile(name)
            assert member is not None
            ctr.note(name, 0, member.read().decode())
    ctr.silently(f"images export --local=false {ctr.work}/out5.tar nothing")
    ctr.silently("images import --local=false /dev/null")
    names = [name for name in ctr.quietly("images ls -q").split() if name != IMAGE]
    ctr(f"images rm {' '.join(names)}")


def content(ctr: Session) -> None:
    """Blobs: ingest, read, labels, removal."""
    data = b"hello\n"
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    other = f"sha256:{hashlib.sha256(b'other').hexdigest()}"
    ctr(f"content ingest --expected-size 6 --expected-digest {digest} one", stdin=data)
    ctr(f"content ingest --expected-size 6 --expected-digest {digest} one", stdin=data)
    ctr("content ingest --expected-size 7 two", stdin=data)
    ctr("content active")
    ctr(f"content ingest --expected-digest {other} three", stdin=data)
    ctr("content ingest --expected-digest sha256:abc four", stdin=data)
    ctr("content active")
    ctr(f"content get {digest}")
    ctr(f"content get {other}")
    ctr("content get nonsense")
    ctr(f"content label {digest} a=b")
    ctr(f"content label {digest} a=")
    ctr(f"content label {other} a=b")
    ctr(f"content ls digest=={digest}")
    ctr(f"content rm {digest} {other}")
    ctr(f"content rm {digest}")
    ctr("content prune references")


def snapshots(ctr: Session) -> None:
    """Every verb of the snapshotters' commands, on both snapshotters."""
    parent = ctr.quietly("snapshots ls").splitlines()[1].split()[0]
    ctr("snapshots ls")
    ctr("snapshots tree")
    ctr(f"snapshots prepare --mounts s1 {parent}")
    ctr(f"snapshots prepare s1 {parent}")
    ctr("snapshots prepare s9 nothing")
    ctr("snapshots prepare -t /mnt s0")
    ctr("snapshots mounts /mnt s1")
    ctr("snapshots mounts /mnt nothing")
    ctr("snapshots info s1")
    ctr("snapshots commit s2 s1")
    ctr("snapshots commit s2 s0")
    ctr("snapshots commit s3 nothing")
    ctr("snapshots view v1 s2")
    ctr("snapshots view -t /mnt v2 s2")
    ctr("snapshots mounts /mnt s2")
    ctr("snapshots info v1")
    ctr("snapshots info nothing")
    ctr("snapshots label s2 a=b")
    ctr("snapshots label nothing a=b")
    ctr("snapshots usage", sort=True)
    ctr("snapshots usage -b s2")
    ctr("snapshots usage nothing")
    ctr("snapshots ls", sort=True)
    ctr("snapshots rm s2")
    ctr("snapshots rm v1 v2 s2 s0")
    ctr("snapshots rm nothing")
    ctr("snapshots rm /etc")
    ctr("snapshots --snapshotter native prepare n1")
    ctr("snapshots --snapshotter native commit n2 n1")
    ctr("snapshots --snapshotter native view n3 n2")
    ctr("snapshots --snapshotter native ls", sort=True)
    ctr("snapshots --snapshotter native rm n3 n2")
    ctr("snapshots --snapshotter nothing ls")
    diff(ctr, parent)


def diff(ctr: Session, parent: str) -> None:
    """What a snapshot changes, as a layer."""
    ctr(f"run --rm --snapshotter overlayfs {IMAGE} d0 true")
    ctr(f"run -d {IMAGE} d1 sh -c 'echo x > /new; rm /etc/group; sleep 100'")
    ctr.until(lambda: ctr.quietly("tasks exec --exec-id t d1 cat /new") == "x\n", "the file is there")
    layer = ctr.raw(
        "snapshots diff --keep --ref layer --media-type application/vnd.oci.image.layer.v1.tar d1"
    )
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        shown = [f"{each.name} {each.mode:o} {each.type!r} {each.size}" for each in archive]
    ctr.note("snapshots diff d1", 0, "\n".join(shown))
    ctr("snapshots diff --media-type application/vnd.oci.image.layer.v1.tar+zip d1")
    ctr("snapshots diff nothing")
    ctr("tasks kill -s KILL d1")
    ctr.until_state("d1", "STOPPED")
    ctr("tasks rm d1")
    ctr("containers rm d1")
    ctr("snapshots ls", sort=True)


def leases(ctr: Session) -> None:
    """Leases with and without an end."""
    ctr("leases create --id l1 --expires 1h a=b")
    ctr("leases create --id l1")
    ctr("leases create --id l2 --expires 0s")
    ctr("leases ls", sort=True)
    ctr("leases ls -q id==l2")
    ctr("leases rm --sync l1")
    ctr("leases rm l1 l2")
    ctr("leases ls")


def runs(ctr: Session) -> None:
    """`run` with its options; what it prints and returns."""
    run = f"run --rm {IMAGE}"
    ctr(f"{run} r echo hello")
    ctr(f"{run} r sh -c 'echo out; sleep 0.1; echo err >&2; exit 3'")
    ctr(f"{run} r sh -c 'read x; echo got $x'", stdin=b"typed\n")
    ctr(f"{run} r /no/such")
    ctr(f"{run} r /etc")
    ctr(f"{run} r sh -c 'kill -TERM $$'")
    ctr(f"{run} ../r true")
    ctr("run --rm nothing r true")
    ctr("containers ls")
    ctr("snapshots ls", sort=True)
    with_options = "run --rm --env A=b --env C= --cwd /tmp --user 33:33 --hostname h --label x=y"
    ctr(f"{with_options} {IMAGE} r sh -c 'echo $A; pwd; id -u; id -g; hostname; env | sort'")
    ctr(f"run --rm --user nobody {IMAGE} r id")
    ctr(f"run --rm --user stranger {IMAGE} r id")
    ctr("snapshots rm r")
    ctr(f"run --rm --read-only {IMAGE} r touch /x")
    ctr(f"run --rm --net-host {IMAGE} r sh -c 'ls /sys/class/net; cat /proc/1/comm'", sort=True)
    ctr(f"{run} r sh -c 'ls /sys/class/net'")
    mounts = (
        "--mount type=tmpfs,dst=/x,options=rw:size=64k --mount type=bind,src=/etc,dst=/y,options=rbind:ro"
    )
    ctr(f"run --rm {mounts} {IMAGE} r sh -c 'exec 2>&1; grep -o \"/[xy] .* r[ow]\" /proc/mounts; touch /y/x'")
    ctr(f"run --rm --mount type=bind,src=/no/such,dst=/y {IMAGE} r true")
    ctr(f"run --rm --memory-limit 20000000 --cpus 0.5 {IMAGE} r true")
    ctr(f"run --rm --cap-drop CAP_CHOWN {IMAGE} r chown 1 /etc/passwd")
    ctr(f"run --rm --cap-add CAP_NOPE {IMAGE} r true")
    ctr(f"run --rm --seccomp {IMAGE} r true")
    ctr(f"run --rm --privileged {IMAGE} r sh -c 'grep CapEff /proc/self/status'")
    ctr(f"run --rm --rootfs {ctr.work}/no/such r true")
    ctr(f"run --rm --rootfs {ctr.work}/rootfs r ls /")
    ctr(f"run --rm --with-ns network:/proc/1/ns/net {IMAGE} r ls /sys/class/net", sort=True)
    ctr(f"run --rm --null-io {IMAGE} r echo hello")
    ctr(f"run --rm --log-uri file://{ctr.work}/said {IMAGE} r echo hello")
    ctr.note("the log", 0, (ctr.work / "said").read_text())
    ctr(f"run --rm --pid-file {ctr.work}/pid {IMAGE} r true")
    ctr.note("the pid is a number", 0, str((ctr.work / "pid").read_text().isdigit()))
    ctr(f"run --rm --runtime io.containerd.nothing.v9 {IMAGE} r true")
    ctr(f"run --rm --runtime nothing {IMAGE} r true")
    ctr(f"run --rm --no-pivot {IMAGE} r true")
    ctr(f"run --rm --platform linux/s390x {IMAGE} r true")
    ctr("containers ls")
    ctr.terminal(f"run --rm -t {IMAGE} r sh -c 'tty; read x; echo got $x; stty size'", b"word\n", "/pts")


def tasks(ctr: Session) -> None:
    """The life of a container that stays: exec, attach, freeze, signals, measures."""
    ctr(f"run -d --memory-limit 50000000 {IMAGE} t sh -c 'while read x; do echo got $x; done; sleep 100'")
    ctr(f"run -d {IMAGE} t sleep 100")
    ctr("tasks ls")
    ctr("tasks ls -q")
    ctr("tasks exec --exec-id e t sh -c 'echo out; sleep 0.1; echo err >&2; exit 4'")
    ctr("tasks exec --exec-id e --cwd /tmp --user nobody t sh -c 'pwd; id -un'")
    ctr("tasks exec --exec-id e t sh -c 'read x; echo got $x'", stdin=b"typed\n")
    ctr("tasks exec --exec-id e t /no/such")
    ctr("tasks exec --exec-id ../e t true")
    ctr("tasks exec --exec-id e nothing true")
    ctr("tasks exec -d --exec-id e t sleep 50")
    ctr("tasks exec --exec-id e t true")
    ctr("tasks ps t")
    ctr("tasks kill -s KILL --exec-id e t")
    ctr("tasks rm --exec-id e t")
    ctr("tasks kill --exec-id no t")
    ctr.terminal("tasks exec -t --exec-id f t sh -c 'tty; read x; echo got $x'", b"word\n", "/pts")
    ctr("tasks pause t")
    ctr("tasks ls")
    ctr("tasks pause t")
    ctr("tasks exec --exec-id g t true")
    ctr("tasks resume t")
    ctr("tasks resume t")
    ctr("tasks ls")
    ctr.note("metrics", 0, "\n".join(_shape(ctr.quietly("tasks metrics --format json t"))))
    ctr("tasks metrics nothing")
    ctr("tasks checkpoint nothing")
    ctr("tasks rm t")
    ctr("tasks start t")
    ctr("containers rm t")
    ctr("tasks kill -s NOPE t")
    with ctr.piped("tasks attach t") as client:
        assert client.stdin is not None
        client.stdin.write(b"word\n")
        client.stdin.flush()
        assert client.stdout is not None
        ctr.note("attached", 0, client.stdout.readline().decode())
        ctr("tasks kill -s KILL t")
    ctr("tasks ls")
    ctr("tasks start -d t")
    ctr("tasks kill -s KILL t")
    ctr.until_state("t", "STOPPED")
    ctr("tasks ls")
    ctr("tasks kill t")
    ctr("tasks exec --exec-id h t true")
    ctr("tasks pause t")
    measured = ctr.quietly("tasks metrics t")
    ctr.note("tasks metrics t", 0, "\n".join(line.split(" ")[0] for line in measured.splitlines()))
    ctr("tasks rm t")
    ctr("tasks rm t")
    ctr("tasks attach t")
    ctr("tasks start -d t")
    ctr("tasks rm --force t")
    ctr("containers rm t")
    ctr("tasks start t")


def runtimes(ctr: Session) -> None:
    """Other OCI runtimes than the daemon's own, by their paths."""
    for name in ("runc", "crun"):
        by = f"--runc-binary {ctr.work}/bin/{name}"
        ctr(f"run --rm {by} {IMAGE} o sh -c 'echo said; exit 3'")
        ctr(f"run --rm {by} {IMAGE} o /no/such")
        ctr(f"run -d {by} --memory-limit 50000000 {IMAGE} o sleep 100")
        ctr.note(f"{name} was called", 0, str((ctr.work / f"called-{name}").exists()))
        ctr("tasks exec --exec-id e o sh -c 'echo in; exit 4'")
        ctr("tasks exec --exec-id e o /no/such")
        ctr("tasks pause o")
        ctr("tasks ls")
        ctr("tasks resume o")
        ctr("tasks ps o")
        ctr("tasks rm --force o")
        ctr("containers rm o")
    ctr(f"run --rm --runc-binary {ctr.work}/bin/nothing {IMAGE} o true")
    ctr("containers ls")


def containers(ctr: Session) -> None:
    """Records of containers without tasks."""
    ctr(f"containers create --env A=b --label l=1 {IMAGE} c echo hello")
    ctr(f"containers create {IMAGE} c echo hello")
    ctr(f"containers create {IMAGE} ../c echo hello")
    ctr("containers ls")
    ctr("containers ls -q labels.l==1")
    ctr("containers ls -q labels.l==2")
    document = json.loads(ctr.quietly("containers info c"))
    spec = document.pop("Spec")
    ctr.note("containers info", 0, json.dumps(document, indent=1, sort_keys=True))
    ctr.note("containers info, spec", 0, json.dumps(spec, indent=1, sort_keys=True))
    ctr("containers label c a=b l=")
    ctr("containers label nothing a=b")
    ctr("containers info nothing")
    ctr("tasks start c")
    ctr("tasks ls")
    ctr("containers checkpoint nothing ref")
    ctr("containers rm c")
    ctr("containers rm c")
    ctr("containers ls")


def events(ctr: Session) -> None:
    """The events of a container's life."""
    with ctr.watching("/containers/delete"):
        ctr(f"run --rm {IMAGE} e sh -c 'exit 5'")


def sandboxes(ctr: Session) -> None:
    """The sandbox store as the client shows it."""
    ctr("sandboxes ls")
    ctr("sandboxes rm nothing")


def _shape(document: str) -> list[str]:
    """The names of all values in a JSON document, in order: numbers differ from run to run."""
    found = []

    def walk(value: object, place: str) -> None:
        if isinstance(value, dict):
            for key in sorted(value):
                walk(value[key], f"{place}.{key}")
        elif isinstance(value, list):
            for each in value[:1]:
                walk(each, f"{place}[]")
        else:
            found.append(place)

    try:
        walk(json.loads(document), "")
    except ValueError:
        return [f"no JSON: {document}"]
    return found


Section = Callable[["Session"], None]
SECTIONS: Sequence[Section] = (
    daemon,
    content,
    images,
    transfers,
    snapshots,
    leases,
    runs,
    tasks,
    runtimes,
    containers,
    events,
    sandboxes,
)

# Those with a shim in them, and the image that they use.
SHIM_SECTIONS: Sequence[Section] = (images, runs, tasks, events)
