"""docs/first-steps.ipynb runs from top to bottom, here with fewer steps and without Jupyter."""

import json
import re
import shutil
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest

from tests.helpers import ROOT

CELLS = json.loads((ROOT / "docs/first-steps.ipynb").read_text())["cells"]
FEWER = {"STEPS = 40_960": "STEPS = 10_240", "SEEDS = 1, 2, 3": "SEEDS = (1,)"}


@pytest.mark.slow
def test_the_notebook_runs_beside_ppo_py_alone_and_shows_what_clipping_does(tmp_path, monkeypatch):
    code = "\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code")
    code = re.sub(r"^%.*", "", code, flags=re.MULTILINE)  # for Jupyter
    for old, new in FEWER.items():
        assert code.count(old) == 1
        code = code.replace(old, new)
    shutil.copy(ROOT / "ppo.py", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ppo", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    plt.switch_backend("Agg")
    plt.close("all")
    names = {}
    exec(code, names)
    assert names["ppo"].__file__ == str(tmp_path / "ppo.py")

    watched, metrics, compared = map(plt.figure, plt.get_fignums())
    assert len(watched.axes) == 4
    assert all(np.ptp(frame) > 100 for frame in names["frames"])  # something is drawn
    for figure, curves in (metrics, 1), (compared, 2):
        assert [axes.get_title() for axes in figure.axes] == ["episodic_return", "entropy", "kl"]
        assert [[len(line.get_ydata()) for line in axes.lines] for axes in figure.axes] == [[5] * curves] * 3
    plt.close("all")

    folders = names["folder"], *names["clipped"], *names["unclipped"]
    first, clipped, unclipped = (names["read"](folder)["kl"] for folder in folders)
    assert np.array_equal(first, clipped)  # the same seed
    assert unclipped.max() > 10 * clipped.max()
    assert names["ppo"].clip_objective is names["clip_objective"]


def test_the_notebook_quotes_the_function_that_it_changes():
    text = "".join("".join(cell["source"]) for cell in CELLS)
    (quoted,) = re.findall(r"```python\n([\s\S]*?)```", text)
    script = (ROOT / "ppo.py").read_text()
    assert re.sub(r'    """.*?"""\n', "", script[script.index("def clip_objective") :]).startswith(quoted)
