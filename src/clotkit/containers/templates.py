"""The texts of a container's folder. `@NAME@` stands for a setting."""

DOCKERFILE = """\
# Written by clotkit container: change its options, not this file.
FROM --platform=linux/amd64 @BASE@

# The root file system is read-only on the platform, so that nothing is compiled or cached at run time.
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/opt/app PKG_CONFIG=false

RUN groupadd --system user && useradd --system --no-log-init --create-home --gid user user
WORKDIR /opt/app

COPY build-requirements.txt requirements.txt /opt/app/
RUN python -m pip install --no-cache-dir --no-color --require-hashes -r build-requirements.txt \\
 && python -m pip install --no-cache-dir --no-color --require-hashes --no-build-isolation -r requirements.txt

COPY app/ /opt/app/
@MODEL@RUN python -m compileall -q /opt/app/clotkit

LABEL org.grand-challenge.api-method="@API@"
USER user
ENTRYPOINT ["python", "-m", "clotkit.containers.entry"]
"""

MODEL_IN_IMAGE = "COPY model/ /opt/app/model/\n"

BUILD = """\
#!/usr/bin/env bash
# Build the image.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
${ENGINE:-docker} build --platform=linux/amd64 --tag "@TAG@" .
"""

TEST_RUN = """\
#!/usr/bin/env bash
# Do one job with the platform's limits: ./do_test_run.sh INPUT_DIR OUTPUT_DIR
# INPUT_DIR is what the platform mounts at /input: inputs.json, and images/SLUG/UUID.tif.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
input="$(realpath "${1:-$here/test/input}")"
output="${2:-$here/test/output}"
engine="${ENGINE:-docker}"
mkdir -p "$output" && output="$(realpath "$output")" && chmod o+rwx "$output"
[ -n "${BUILT:-}" ] || "$here/do_build.sh"

# Python as process 1 ignores SIGTERM: the container is removed however this script ends.
export engine name="@TAG@-$$"
scratch="$name-scratch"
end() {
  @LOGS@"$engine" rm -f "$name" >/dev/null 2>&1 || true
  "$engine" volume rm -f "$scratch" >/dev/null 2>&1 || true
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
"$engine" volume create "$scratch" >/dev/null
limits=(--platform=linux/amd64 --network none --cap-drop ALL --security-opt no-new-privileges --read-only
  --memory @MEMORY@m --memory-swap @MEMORY@m --shm-size @SHM@m --pids-limit @PIDS@
  --volume "$input":/input:ro --volume "$output":/output --volume "$scratch":/tmp@MOUNT@)
@RUN@"""

# In the background, as bash runs no trap before a program in the foreground has ended.
RUN_EXEC = """\
timeout -k 10 @TIME@ "$engine" run --rm --name "$name" "${limits[@]}" "@TAG@" &
wait $!
"""

RUN_INVOKE = """\
# The requests come from inside, as the network is off.
ask() { "$engine" exec "$name" python -c "import urllib.request as r
print(r.urlopen(r.Request('http://127.0.0.1:4743$2', method='$1')).status)"; }
export -f ask
"$engine" run --rm --detach --name "$name" "${limits[@]}" "@TAG@" >/dev/null
for _ in $(seq 30); do [ "$(ask GET /health 2>/dev/null)" = 200 ] && break; sleep 1; done
exec 3< <(timeout -k 10 @TIME@ bash -c 'ask POST /invoke')
wait $!
[ "$(cat <&3)" = 201 ]
"""

SAVE = """\
#!/usr/bin/env bash
# Save what is uploaded: the image, and the model if it is not in the image.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
./do_build.sh
${ENGINE:-docker} save "@TAG@" | gzip -c > "@TAG@.tar.gz"
@TARBALL@"""

TARBALL = "tar -czf model.tar.gz -C model .\n"

LABEL = "| `/output/@LABEL@.json` | the label, one of @CLASSES@ |\n"

README = """\
# @TAG@

Written by `clotkit container`. It answers one case a job: every image of the case is a slide of one patient.

| socket | what |
|---|---|
| images: @IMAGES@ | slides, `.tif`, `.tiff` or `.mha` |
| `/output/@PROBABILITY@.json` | @FORM@ |
@LABELS@| `/output/clotkit.json` | not a socket: state, reason codes and the probabilities of every slide |

```
./do_build.sh                        # build the image
./do_test_run.sh INPUT_DIR OUTPUT_DIR  # one job with the platform's limits
./do_save.sh                         # the files to upload
```
"""
