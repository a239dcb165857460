# Shared by scripts/*: find a Python, make .venv, install once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=.venv

fail() {
  printf 'error: %s\n' "$1" >&2
  exit 1
}

# A Python from 3.10 to 3.13 with venv, and with ensurepip or pip; $PYTHON if it is set.
find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.10 python; do
    if command -v "$candidate" >/dev/null 2>&1 && "$candidate" - 2>/dev/null <<'PY'; then
import importlib.util, sys
has = importlib.util.find_spec
sys.exit(not ((3, 10) <= sys.version_info[:2] <= (3, 13) and has("venv") and (has("ensurepip") or has("pip"))))
PY
      command -v "$candidate"
      return
    fi
  done
  fail "no Python from 3.10 to 3.13 with venv and pip was found. Install one, or name it: PYTHON=/path/to/python3.12 $0"
}

make_venv() {
  local python=$1
  echo "Making the environment $VENV with $python" >&2
  if [[ ${VIRTUAL_ENV:-$PWD/$VENV} != "$PWD/$VENV" ]]; then
    echo "$VIRTUAL_ENV is active and stays as it is: scripts/* use $VENV alone. \`smolact demo\` runs in the one that is active." >&2
  fi
  rm -rf "$VENV"
  if "$python" -c 'import ensurepip' 2>/dev/null; then
    "$python" -m venv "$VENV"
    return
  fi
  # Debian and Ubuntu keep ensurepip in a package of its own. The pip that is there can put one into the venv.
  "$python" -m venv --without-pip "$VENV"
  local home
  home=$("$python" -c 'import pathlib, pip; print(pathlib.Path(pip.__file__).parent.parent)')
  PYTHONPATH=$home "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --ignore-installed pip
}

fingerprint() {
  "$VENV/bin/python" - "$1" <<'PY'
import hashlib, pathlib, sys
folders = (".", "packages/smolact-client", "plugins/smolact_transformers", "plugins/smolact_il_studio")
version = pathlib.Path("src/smolact/__init__.py").read_bytes()
content = b"".join(pathlib.Path(folder, "pyproject.toml").read_bytes() for folder in folders) + version + sys.argv[1].encode() + sys.version.encode()
print(hashlib.sha256(content).hexdigest())
PY
}

# The plugins that an extra needs, as pip's arguments: they are of this repository, like the client.
plugins_of() {
  case $1 in
    hf) echo --editable plugins/smolact_transformers ;;
    il-studio | test | docs) echo --editable plugins/smolact_transformers --editable plugins/smolact_il_studio ;;
  esac
}

# install EXTRA: smolact, the client that it depends on and the plugins of an extra, editable, with the dependencies of
# the extra ("" for none), unless that is done already.
install() {
  local extra=$1 stamp="$VENV/.installed-${1:-base}"
  if ! "$VENV/bin/python" -c '' 2>/dev/null; then
    local python
    python=$(find_python)
    make_venv "$python"
  fi
  local wanted
  wanted=$(fingerprint "$extra")
  if [[ ! -f $stamp || $(<"$stamp") != "$wanted" ]]; then
    echo "Installing smolact${extra:+[$extra]} into $VENV (once; some minutes)" >&2
    if [[ $(uname) == Linux ]] && ! command -v nvidia-smi >/dev/null 2>&1; then
      echo "No NVIDIA GPU was found. Where pip's index offers PyTorch's build for CPUs (1 GB with all else) it takes that, else the one for GPUs (5 GB)." >&2
    fi
    "$VENV/bin/python" scripts/install_told.py \
      --editable packages/smolact-client --editable ".${extra:+[$extra]}" $(plugins_of "$extra") ||
      fail "the installation failed; what pip said is above. Mend it and run $0 again."
    echo "$wanted" >"$stamp"
  fi
}
