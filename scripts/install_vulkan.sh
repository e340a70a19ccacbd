#!/usr/bin/env bash
# Installs what SAPIEN needs to draw without a graphics card: Mesa's software Vulkan driver, new enough: scripts/install_vulkan.sh [folder of
# the virtual environment]. For Debian 12 as root, whose own Mesa 22 SAPIEN refuses: the newer one comes from the backports suite of the
# archive that the system already uses. Nothing else is upgraded from there than what the driver depends on, and OpenGL stays as it is.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv}/bin/python

say() { echo "install_vulkan: $1"; }
refuse() {
    say "$1" >&2
    exit 1
}

# The device that SAPIEN would draw on; fails where it finds none.
device() {
    "$python" -c 'import sapien; print(sapien.render.RenderSystem().device.name)' 2>/dev/null
}

"$python" -c 'import sapien' 2>/dev/null || refuse "SAPIEN is not installed for $python; install it: pip install 'vis-rpg[robotics]'"
if name=$(device); then
    say "nothing to do: SAPIEN draws on $name"
    exit 0
fi
. /etc/os-release
if [ "${ID:-}" != debian ] || [ "${VERSION_ID:-}" != 12 ]; then
    refuse "this is ${PRETTY_NAME:-not Debian 12}; install libvulkan1 and mesa-vulkan-drivers, of Mesa 25 or newer, yourself"
fi
[ "$(id -u)" = 0 ] || refuse "SAPIEN finds no Vulkan device that it takes; run this script as root to install one"

suite=$VERSION_CODENAME-backports
targets() { apt-get indextargets --format '$(CODENAME) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages'; }
apt-get update
if ! targets | grep "^$suite main " >/dev/null; then
    archive=$(targets | awk -v codename="$VERSION_CODENAME" '$1 == codename && $2 == "main" { print $3; exit }')
    [ -n "$archive" ] || refuse "apt knows no archive of $VERSION_CODENAME to take $suite from"
    list=/etc/apt/sources.list.d/$suite.list
    say "adding $suite of $archive to apt, in $list (at its priority nothing is upgraded by itself)"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $archive $suite main" >"$list"
    apt-get update
fi
say "installing mesa-vulkan-drivers from $suite"
DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "mesa-vulkan-drivers/$suite" libvulkan1
name=$(device) || refuse "the driver is installed, but SAPIEN still finds no Vulkan device that it takes"
say "done: SAPIEN draws on $name"
