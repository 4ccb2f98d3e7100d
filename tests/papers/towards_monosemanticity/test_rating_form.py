import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from made_up_analysis import make
from typer.testing import CliRunner

from papers.towards_monosemanticity import rating_form
from papers.towards_monosemanticity.rating_form import (
    INTERVALS,
    PER_INTERVAL,
    RUBRIC,
    Settings,
    build,
    choose_intervals,
    render,
    score,
    script_json,
)
from shared.errors import UserError

SETTINGS = Settings(units=5, intervals=24, logits=4, examples=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield make(tmp_path_factory.mktemp("analysis"), patch)


@pytest.fixture(scope="module")
def form(folder):
    return build(folder, SETTINGS)


def answers(key, **scores):
    """Ratings that give every interval the same answers."""
    per_item = {name: scores[name] for name in RUBRIC if name != PER_INTERVAL}
    return {
        "form": key["form"],
        "items": {
            str(entry["item"]): per_item
            | {"intervals": {str(i): {PER_INTERVAL: scores[PER_INTERVAL]} for i in entry["rated"]}}
            for entry in key["items"]
        },
    }


BEST = {
    "confidence": 3, "activation_consistency": 5, "logit_consistency": 3, "separation": 0,
    "specificity": 3,
}  # fmt: skip


def test_the_form_holds_as_many_units_and_intervals_as_asked(form):
    content, key = form
    kinds = [entry["kind"] for entry in key["items"]]
    assert kinds.count("feature") == kinds.count("neuron") == 5
    assert sum(len(item["rated"]) for item in content["items"]) == 24
    for item in content["items"]:
        assert item["rated"]
        assert all(item["examples"][interval] for interval in item["rated"])
        assert len(item["examples"]) == INTERVALS
        assert len(item["logits"]) == 4


def test_the_rater_is_blind(form):
    content, _ = form
    page = render(content)
    data = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1]
    assert set(json.loads(data)) == {"form", "items", "vocabulary"}
    assert all(set(i) == {"item", "rated", "logits", "examples"} for i in content["items"])
    assert [item["item"] for item in content["items"]] == list(range(1, 11))
    shell = page.replace(data, "")
    for word in ("neuron", "feature", "a1", "density"):
        assert word not in shell.lower()


def test_features_and_neurons_are_mixed_by_seed(folder, form):
    def order(seed):
        _, key = build(folder, SETTINGS.model_copy(update={"seed": seed}))
        return [(entry["kind"], entry["index"]) for entry in key["items"]]

    assert order(0) == [(entry["kind"], entry["index"]) for entry in form[1]["items"]]
    others = [order(1), order(2)]
    assert others[0] != others[1] != order(0)
    # Not first the ones and then the others, in any of them.
    assert any(len({kind for kind, _ in one[:5]}) == 2 for one in others)


def test_examples_lie_in_their_interval(form):
    for item in form[0]["items"]:
        for interval, examples in enumerate(item["examples"]):
            for example in examples:
                assert len(example["tokens"]) == len(example["levels"]) == 9
                middle = example["levels"][4]
                # 11 intervals seen in ten levels.
                assert 9 * interval / 11 - 0.6 <= middle <= 9 * (interval + 1) / 11 + 0.6


def test_intervals_are_spread_over_all_units():
    random = np.random.default_rng(0)
    chosen = choose_intervals([[0, 1, 2], [4], [5, 6]], 5, random)
    assert sum(map(len, chosen)) == 5
    assert chosen[1] == [4]
    assert all(chosen)
    assert choose_intervals([[0], [1]], 9, random) == [[0], [1]]
    with pytest.raises(UserError, match="at least one"):
        choose_intervals([[0], [1]], 1, random)


def test_the_highest_score_is_fourteen(form):
    key = form[1]
    result = score(answers(key, **BEST), key)
    assert set(result["scores"]["feature"]) == {rating_form.MAXIMUM}
    # Separation makes up for one point of logit consistency, and never adds to a full one.
    almost = BEST | {"logit_consistency": 2, "separation": 1}
    assert set(score(answers(key, **almost), key)["scores"]["neuron"]) == {14}
    assert set(score(answers(key, **BEST | {"separation": 1}), key)["scores"]["neuron"]) == {14}


def test_without_an_interpretation_the_score_is_zero(form):
    key = form[1]
    ratings = answers(key, **BEST)
    for item in ratings["items"].values():
        item.clear()
        item["confidence"] = 0
    result = score(ratings, key)
    assert result["medians"] == {"feature": 0, "neuron": 0}
    assert result["interpretable"] == {"feature": 0, "neuron": 0}


def test_scores_are_joined_with_the_right_kind(form):
    key = form[1]
    ratings = answers(key, **BEST)
    for entry in key["items"]:
        if entry["kind"] == "neuron":
            ratings["items"][str(entry["item"])] = {"confidence": 0}
    result = score(ratings, key)
    assert result["medians"] == {"feature": 14, "neuron": 0}
    assert result["interpretable"] == {"feature": 1, "neuron": 0}
    assert result["p_value"] < 0.001
    assert len(result["scores"]["feature"] + result["scores"]["neuron"]) == 24
    assert set(result["by_interval"]["feature"]) <= {5, None}


def test_unrated_items_are_counted_and_left_out(form):
    key = form[1]
    ratings = answers(key, **BEST)
    del ratings["items"]["1"]
    result = score(ratings, key)
    assert result["unrated"] == 1
    rated = sum(len(entry["rated"]) for entry in key["items"][1:])
    assert sum(map(len, result["scores"].values())) == rated


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(form="another"), "the key is of"),
        (lambda r: r["items"]["1"].update(confidence=4), "confidence is 4: it should be 0 to 3"),
        (lambda r: r["items"]["1"].update(specificity="3"), "specificity is '3'"),
        (lambda r: r["items"]["1"].update(confidence=True), "confidence is True"),
        (lambda r: r["items"]["1"].pop("logit_consistency"), "logit_consistency is None"),
        (lambda r: r["items"]["1"].update(intervals={}), "activation_consistency is None"),
        (lambda r: r.pop("items"), "no ratings"),
    ],
)
def test_ratings_that_do_not_fit_are_named(form, change, message):
    key = form[1]
    ratings = answers(key, **BEST)
    change(ratings)
    with pytest.raises(UserError, match=message):
        score(ratings, key)


def test_too_few_units_are_named(folder):
    with pytest.raises(UserError, match="lower `units`"):
        build(folder, Settings(units=40))


def test_json_cannot_end_its_script():
    text = script_json({"token": "</script><script>alert(1)//\u2028<!--&"})
    assert not re.search(r"[<>&\u2028]", text)
    assert json.loads(text) == {"token": "</script><script>alert(1)//\u2028<!--&"}


class Balanced(HTMLParser):
    """Collects the tags that are open at the end."""

    def __init__(self):
        super().__init__()
        self.stack, self.scripts = [], 0

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        if tag not in ("meta", "input", "br", "link"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag


def test_the_page_is_well_formed_whatever_the_tokens_say(form):
    content = {**form[0], "vocabulary": ["</script><b>"] * 4096}
    page = Balanced()
    page.feed(render(content))
    assert page.stack == []
    assert page.scripts == 3


def test_the_commands_write_and_score(folder, form, tmp_path, monkeypatch):
    monkeypatch.setattr(rating_form, "ROOT", tmp_path)
    place = tmp_path / "artifacts" / "towards_monosemanticity" / "tiny"
    shutil.copytree(folder, place)
    run = CliRunner().invoke
    options = ["--profile", "tiny", "--units", "5", "--intervals", "24"]
    built = run(rating_form.app, ["build", "--into", str(tmp_path / "out"), *options])
    assert built.exit_code == 0, built.output
    key = json.loads((tmp_path / "out/key.json").read_text())
    ratings = tmp_path / "ratings.json"
    ratings.write_text(json.dumps(answers(key, **BEST)))
    scored = run(rating_form.app, ["score", str(ratings), str(tmp_path / "out/key.json")])
    assert scored.exit_code == 0, scored.output
    assert "14" in scored.output
    missing = run(rating_form.app, ["score", str(tmp_path / "none.json"), str(ratings)])
    assert missing.exit_code == 2
    ratings.write_text("{")
    assert run(rating_form.app, ["score", str(ratings), str(ratings)]).exit_code == 2


def test_a_rater_answers_with_the_keyboard_and_loses_nothing(form, browser, tmp_path):
    content, key = form
    (tmp_path / "form.html").write_text(render(content), encoding="utf-8")
    troubles = []
    page = browser.new_context(viewport={"width": 360, "height": 700}).new_page()
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("requestfailed", lambda request: troubles.append(request.url))
    page.goto((tmp_path / "form.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for entry in key["items"]:
        assert page.locator("#title").inner_text() == f"Item {entry['item']} of 10"
        fields = page.locator("fieldset").all()
        assert len(fields) == len(entry["rated"]) + 4
        for field in fields:
            name = field.get_attribute("data-question")
            field.locator("input").first.focus()
            page.keyboard.press(str(BEST[name]))
        page.locator("#title").focus()
        page.keyboard.press("ArrowRight")
    assert page.locator("output").inner_text() == "10 of 10 rated"
    page.reload()
    assert page.locator("output").inner_text() == "10 of 10 rated"
    with page.expect_download() as download:
        page.get_by_role("button", name="Save ratings").click()
    ratings = json.loads(download.value.path().read_text())
    assert troubles == []
    assert set(score(ratings, key)["scores"]["feature"]) == {14}
