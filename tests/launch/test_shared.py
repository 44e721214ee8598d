"""What the launch scripts have in common, where none of them shows it reliably."""

import subprocess

from tests.launch.machine import LAUNCH

# Each process has the script's trap run at about the moment in which it ends.
RACE = """\
source {shared}
trap : TERM
for ((run = $1; run < 10; run += 2)); do
  sh -c "sleep 0.0$run; kill -TERM $$; exit 75" &
  await $!
  echo "$CODE"
done
"""


def test_a_signal_as_the_process_ends_does_not_lose_its_exit_code():
    command = ["bash", "-c", RACE.format(shared=LAUNCH / "shared.sh"), "race"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for race in [subprocess.Popen([*command, first], **pipes) for first in "01"]:
        out, err = race.communicate(timeout=60)
        assert (out.split(), err) == (["75"] * 5, "")
