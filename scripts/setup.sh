#!/usr/bin/env bash
# Creates a virtual environment and installs the project into it: scripts/setup.sh [folder].
# Looks first at what the system must bring, and names what is missing with the package that has it.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
missing=0

lacks() {
    echo "setup: $1" >&2
    missing=1
}

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

python=
for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if new_enough "$candidate"; then
        python=$candidate
        break
    fi
done

if [ -z "$python" ]; then
    found=$("${PYTHON:-python3}" --version 2>/dev/null || echo "no ${PYTHON:-python3}")
    lacks "Python 3.11 or newer is missing (found: $found); install it: apt-get install python3.11 python3.11-venv"
elif ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
    version=$("$python" -c 'import sys; print("{}.{}".format(*sys.version_info))')
    lacks "Python's venv module is missing; install it: apt-get install python$version-venv"
fi

# An old Python can still tell whether a library loads.
if "${python:-python3}" -c '' >/dev/null 2>&1; then
    while read -r library package use; do
        if ! "${python:-python3}" -c "import ctypes; ctypes.CDLL('$library')" >/dev/null 2>&1; then
            lacks "$library is missing ($use); install it: apt-get install $package"
        fi
    done <<'LIBRARIES'
libEGL.so.1 libegl1 rendering without a screen
libGL.so.1 libgl1 OpenGL
libgthread-2.0.so.0 libglib2.0-0 OpenCV
LIBRARIES
fi

[ "$missing" = 0 ] || exit 1

if ! new_enough "$venv/bin/python"; then
    "$python" -m venv --clear "$venv"
fi
echo "setup: installing into $venv (some minutes: torch is large)"
"$venv/bin/python" -m pip install --disable-pip-version-check --editable '.[dev,docs,explore,robotics,warp]' --constraint constraints.txt

# The libraries may be there without a driver behind them: only an image proves that rendering works.
if ! MUJOCO_GL=${MUJOCO_GL:-egl} "$venv/bin/python" - 2>/dev/null <<'PYTHON'; then
import mujoco

model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><light/><geom size='1'/></worldbody></mujoco>")
with mujoco.Renderer(model, 16, 16) as renderer:
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer.update_scene(data)
    renderer.render()
PYTHON
    lacks "MuJoCo cannot render through EGL: no OpenGL driver; install one: apt-get install libgl1-mesa-dri"
    exit 1
fi
echo "setup: ready"
