"""What the launch scripts have in common, where none of them shows it reliably."""

import subprocess

from tests.launch.machine import LAUNCH

# Each process has the script's trap run at about the moment in which it ends.
RACE = """\
source {shared}
trap : TERM
for ((run = 0; run < 10; run++)); do
  sh -c "sleep 0.0$run; kill -TERM $$; exit 75" &
  await $!
  echo "$CODE"
done
"""


def test_a_signal_as_the_process_ends_does_not_lose_its_exit_code():
    script = RACE.format(shared=LAUNCH / "shared.sh")
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout.split(), done.stderr) == (["75"] * 10, "")
