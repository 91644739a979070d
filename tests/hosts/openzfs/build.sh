#!/usr/bin/env bash
# Make a small virtual machine with Debian 12's kernel and the zfs module of Debian's contrib.
#
#   build.sh FOLDER     (as root, on Debian 12; the folder must not exist)
#
# FOLDER then holds vmlinuz, initrd, root.img (ext4, only ever read) and VERSIONS. No keys: those come with
# each start. Nothing of this machine is changed, and no module is loaded here.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$1
suite=bookworm
export DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"
umask 022
work=$(mktemp -d "${TMPDIR:-/tmp}/dsg-openzfs-build-XXXXXX")
trap 'rm -rf "$work"' EXIT
log=$work/log
began=$SECONDS
step() { echo "openzfs image, $((SECONDS - began)) s: $*" >&2; }
# What a step says is of interest only when it fails.
quietly() { "$@" >> "$log" 2>&1 < /dev/null || { tail -n 30 "$log" >&2; echo "failed: $*" >&2; exit 1; }; }

[ "$(id -u)" -eq 0 ] || { echo "only root can build it: sudo make test-openzfs" >&2; exit 1; }

step "looking up Debian's packages"
# An apt of its own: this machine's mirrors, with contrib, in lists that are gone afterwards.
mirror_of() {
    apt-get indextargets --format '$(REPO_URI) $(RELEASE)' |
        awk -v release="$1" '$2 == release { sub("/$", "", $1); print $1; exit }'
}
mirror=$(mirror_of $suite)
security=$(mirror_of $suite-security)
[ -n "$mirror" ] || {
    echo "apt knows no mirror of Debian $suite here (try: apt-get update); only Debian 12 can build it" >&2
    exit 1
}
keys=/usr/share/keyrings/debian-archive-keyring.gpg
sources() {
    echo "deb [signed-by=$keys] $mirror $suite main contrib"
    [ -z "$security" ] || echo "deb [signed-by=$keys] $security $suite-security main contrib"
}
mkdir -p "$work"/apt/{lists/partial,cache/archives/partial} "$work"/{debs,kernel,headers,zfs,busybox}
sources > "$work/apt/sources.list"
own_apt() {
    local command=$1
    shift
    "$command" -o Dir::Etc::sourcelist="$work/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::State::lists="$work/apt/lists" -o Dir::Cache="$work/apt/cache" -o APT::Sandbox::User=root \
        -o Acquire::Retries=3 -o Acquire::Check-Valid-Until=false -o Acquire::Check-Date=false "$@"
}
quietly own_apt apt-get -q update
depends() { own_apt apt-cache depends "$1" | sed -n "s/.*Depends: \($2\)\$/\1/p" | head -n 1; }
image=$(depends linux-image-cloud-amd64 'linux-image-[^ ]*')
kernel=${image#linux-image-}
common=linux-headers-${kernel%-cloud-amd64}-common
kbuild=$(depends "linux-headers-$kernel" 'linux-kbuild-[^ ]*')
cd "$work/debs"
quietly own_apt apt-get -q download "$image" "linux-headers-$kernel" "$common" "$kbuild" busybox-static zfs-dkms
cd "$work"

step "unpacking the guest's programs, beside it the zfs module's configuration for $kernel"
bootstrap() {
    sources | mmdebstrap --mode=root --variant=minbase --components=main,contrib \
        --aptopt='Acquire::Retries "3"' \
        --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Check-Date "false"' \
        --aptopt='APT::Install-Recommends "false"' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
        --dpkgopt='path-exclude=/usr/share/i18n/*' \
        --include=zfsutils-linux,openssh-server,python3,iproute2,kmod,procps,rsync \
        $suite "$work/root" -
}
bootstrap > "$work/bootstrap.log" 2>&1 &
bootstrapping=$!

dpkg-deb -x "$(echo debs/linux-image-*.deb)" kernel
for package in debs/linux-headers-*.deb debs/linux-kbuild-*.deb; do dpkg-deb -x "$package" headers; done
dpkg-deb -x "$(echo debs/zfs-dkms_*.deb)" zfs
dpkg-deb -x "$(echo debs/busybox-static_*.deb)" busybox
# The packages name one another by absolute path: point them into the work folder.
usr=$work/headers/usr
objects=$usr/src/linux-headers-$kernel
for makefile in "$objects/Makefile" "$usr/src/$common/Makefile"; do
    sed -i "s#/usr/src/#$usr/src/#g" "$makefile"
done
find "$usr/src" -maxdepth 2 -type l | while read -r link; do
    case $(readlink "$link") in /usr/*) ln -sfn "$work/headers$(readlink "$link")" "$link" ;; esac
done
source=$(echo "$work"/zfs/usr/src/zfs-*)
cd "$source"
TEST_JOBS=$(nproc) quietly ./configure --disable-dependency-tracking --with-config=kernel \
    --with-linux="$usr/src/$common" --with-linux-obj="$objects"
cd "$work"
wait $bootstrapping || { tail -n 30 "$work/bootstrap.log" >&2; exit 1; }

step "compiling the zfs module"
quietly make -C "$source" -j"$(nproc)"

step "packing"
root=$work/root
modules=$root/lib/modules/$kernel
mkdir -p "$modules/extra"
cp "kernel/lib/modules/$kernel"/modules.{builtin,builtin.modinfo,order} "$modules/"
find "$source/module" -name '*.ko' -exec cp {} "$modules/extra/" \;
strip -g "$modules"/extra/*.ko
for module in virtio virtio_ring virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk \
    virtio_net net_failover failover virtio-rng overlay; do
    found=$(find "kernel/lib/modules/$kernel" -name "$module.ko*" | head -n 1)
    [ -n "$found" ] || continue # built into the kernel
    target=$modules/${found#"kernel/lib/modules/$kernel/"}
    mkdir -p "$(dirname "$target")"
    cp "$found" "$target"
done
quietly chroot "$root" depmod "$kernel"

rm -f "$root"/etc/ssh/ssh_host_*
cat > "$root/etc/ssh/sshd_config" <<'CONFIG'
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PrintMotd no
MaxStartups 100
MaxSessions 100
# There is no udev, on whose database zpool would wait.
SetEnv ZFS_VDEV_DEVID_OPT_OUT=YES SHLVL=1
CONFIG
# Not root: somebody who only looks at what is on the server.
quietly chroot "$root" useradd -m -s /bin/bash -u 1000 reader
quietly chroot "$root" usermod -p '*' reader
quietly chroot "$root" usermod -p '*' root
echo dsg-openzfs > "$root/etc/hostname"
echo '127.0.0.1 localhost dsg-openzfs' > "$root/etc/hosts"
# With an id that stays the same a pool is imported without force after a crash.
printf '\x78\x56\x34\x12' > "$root/etc/hostid"
install -m755 "$here/guest/init" "$root/sbin/guest-init"
install -m755 "$here/guest/power-off" "$root/usr/local/sbin/power-off"
chroot "$root" dpkg-query -W zfsutils-linux openssh-server python3 > "$work/VERSIONS"
# Python is slow to compile where a processor is only emulated.
chroot "$root" python3 -m compileall -q /usr/lib/python3.11 >> "$log" 2>&1 || true
(
    cd "$root"
    rm -rf usr/share/{perl,perl5,doc,man,locale,info,zoneinfo,bash-completion,common-licenses,lintian,menu} \
        usr/lib/x86_64-linux-gnu/{perl,gconv,libperl.so*,libicu*} usr/bin/perl* usr/lib/apt usr/include \
        var/lib/apt/lists var/lib/dpkg/info var/cache/* boot/* tmp/* \
        usr/lib/python3*/{test,idlelib,lib2to3,ensurepip,turtledemo,tkinter}
    mkdir -p tmp usr/share/zoneinfo
    chmod 1777 tmp
)
mkdir "$work/out"
megabytes=$(($(du -sm --apparent-size "$root" | cut -f1) * 12 / 10 + 64))
truncate -s ${megabytes}M out/root.img
quietly mke2fs -q -F -t ext4 -O ^has_journal -m 0 -N 24000 -d "$root" out/root.img

initrd=$work/initrd
mkdir -p "$initrd"/{bin,dev,proc,sys,new,modules}
install -m755 "$(find busybox -path '*/bin/busybox' -type f)" "$initrd/bin/busybox"
ln -s busybox "$initrd/bin/sh"
# In the order of insertion; modules.dep has what a module needs behind it, the first to load last.
number=10
for module in virtio_pci virtio_blk overlay; do
    for file in $(sed -n "s#^\([^ ]*/$module\.ko[^:]*\):\(.*\)#\1\2#p" "$modules/modules.dep" | tr ' ' '\n' | tac); do
        name=$(basename "$file" .xz)
        ls "$initrd"/modules/*-"$name" > /dev/null 2>&1 && continue
        case $file in
            *.xz) xz -dc "$modules/$file" > "$initrd/modules/$number-$name" ;;
            *) cp "$modules/$file" "$initrd/modules/$number-$name" ;;
        esac
        number=$((number + 1))
    done
done
install -m755 "$here/guest/initrd-init" "$initrd/init"
mknod -m600 "$initrd/dev/console" c 5 1
(cd "$initrd" && find . | sort | cpio -o -H newc --quiet | zstd -q -9) > out/initrd
cp "kernel/boot/vmlinuz-$kernel" out/vmlinuz
{
    echo "kernel $kernel $(dpkg-deb -f debs/linux-image-*.deb Version)"
    echo "zfs-dkms $(dpkg-deb -f debs/zfs-dkms_*.deb Version)"
    cat VERSIONS
} > out/VERSIONS
mv "$work/out" "$out"
step "made: $(head -n 2 "$out/VERSIONS" | tr '\n' ' ')"
