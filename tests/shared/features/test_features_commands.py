"""What all commands about features have in common."""

import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from typer.testing import CliRunner

import shared.features.commands as commands
from shared.cli import app
from shared.errors import UserError
from shared.features.options import opened


def test_every_module_is_a_command():
    folder = Path(commands.__file__).parent
    assert sorted(commands.NAMES) == sorted(p.stem for p in folder.glob("*.py") if p.stem[0] != "_")


@pytest.mark.parametrize("name", commands.NAMES)
def test_every_command_about_features_has_help_with_an_example(name):
    example = import_module(f"shared.features.commands.{name}").EXAMPLE
    assert example.startswith(f"sae {name} ")
    result = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert " ".join(example.split()) in re.sub(r"[\s│]+", " ", result.stdout)


def test_commands_are_light_to_import():
    code = (
        "import json, sys, shared.cli, shared.features.commands as c\n"
        "assert all(f'{c.__name__}.{name}' in sys.modules for name in c.NAMES)\n"
        "print(json.dumps(list(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    heavy = {"torch", "transformers", "matplotlib", "scipy.stats", "sklearn", "sae_lens", "captum"}
    assert not heavy & set(json.loads(result.stdout))


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there(device):
    with pytest.raises(UserError, match=f"no device '{device}' here .*: choose cpu") as caught:
        opened(device=device)
    assert "\n" not in str(caught.value)


def test_an_autoencoder_that_is_not_there():
    with pytest.raises(UserError, match="no autoencoder 'nonsense': choose a bundled one"):
        opened("nonsense")
