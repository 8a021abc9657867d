"""Exercises that check themselves: a blank fails its tests, all of them, and what the script has passes."""

import pytest

from tests import exercise
from tests.helpers import ROOT

ALL = [(script, function) for script, functions in exercise.EXERCISES.items() for function in functions]


class Outcomes(list):
    """A plugin of pytest that collects whether tests passed."""

    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            self.append(report.passed)


@pytest.mark.filterwarnings("ignore:.*Overriding environment")
@pytest.mark.parametrize(("script", "function"), ALL)
def test_a_blank_fails_all_of_its_tests(tmp_path, script, function):
    path, outcomes, which = tmp_path / "copy.py", Outcomes(), exercise.EXERCISES[script][function]
    path.write_text(exercise.blank((ROOT / f"{script}.py").read_text(), function)[0])
    assert exercise.check(script, which, path, "--tb=no", plugins=[outcomes]) == 1
    assert set(outcomes) == {False}


@pytest.mark.filterwarnings("ignore:.*Overriding environment")
@pytest.mark.parametrize("script", exercise.EXERCISES)
def test_the_script_passes_the_tests_of_all_its_exercises(script):
    which = " or ".join(exercise.EXERCISES[script].values())
    assert exercise.check(script, which, ROOT / f"{script}.py") == 0


def test_the_same_command_writes_a_copy_and_then_tests_it(tmp_path, capsys):
    command, path = ["ppo", "clip_objective"], tmp_path / "ppo_clip_objective.py"
    exercise.main(command, tmp_path)
    assert "python -m tests.exercise ppo clip_objective" in capsys.readouterr().out
    answer = "return torch.min(ratio * adv, ratio.clamp(1 - eps, 1 + eps) * adv).mean()"
    for line, status in ("raise NotImplementedError", 1), (answer, 0):
        path.write_text(path.read_text().replace("raise NotImplementedError", line))
        with pytest.raises(SystemExit, match=f"^{status}$"):
            exercise.main(command, tmp_path)
