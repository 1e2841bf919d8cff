"""A user's own networks in the roles of the paper allow their figures, and numbers stay what they are."""

import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import folder, planted
from scipy.stats import t
from test_resume import interrupted

import repsim as rs
from repsim.cli import main
from repsim.paper.claims import Numbers, unchecked
from repsim.paper.exhibits import Compared, Made
from repsim.paper.figures import FIGURES, PRESETS
from repsim.paper.findings import findings
from repsim.paper.roles import Roles, case
from repsim.paper.run import Cast
from repsim.tables import PROBE_SUMMARY, RECEPTIVE, load_table

VIT, CNN = "vit_mini", "resnet_mini"
IMAGES, BATCH = 24, 8
CHOSEN = ["1", "2", "3", "5", "6", "7", "9", "D.2", "E.2"]


def images():
    return rs.ImageSet("sample", images=IMAGES)


def repsim(*arguments, code=0):
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def own():
    """A run of a ViT and a CNN."""
    return rs.paper.replicate({"vit": VIT, "cnn": CNN}, images(), figures=CHOSEN, batch_size=BATCH, channels=2)


@pytest.fixture(scope="module")
def tables(own):
    """Figure -> its tables."""
    return {exhibit.number: figure.tables for exhibit, figure in own.made}


# The networks that play roles


def test_mini_is_one_assignment_but_for_figures_of_half_the_steps():
    assert set(PRESETS["mini"].figures) == {"4", "12", "13", "G.2", "D.1"}
    own = Roles.of(dict(PRESETS["mini"].every))
    same = [
        number
        for number, exhibit in FIGURES.items()
        if exhibit.networks(own.cases(exhibit)) == exhibit.networks(PRESETS["mini"].cases(exhibit))
    ]
    assert set(FIGURES) - set(same) == set(PRESETS["mini"].figures)


def test_a_role_that_nobody_plays_is_named():
    cast = Cast.of(list(FIGURES.values()), Roles.of({"vit": VIT, "cnn": CNN}))
    said = cast.left_out.sentences()
    assert "figures 4, 12, F.1 are left out: no network has the role little" in said
    assert "figure 10 is left out: no network has the role gap" in said
    possible = {exhibit.number for exhibit in cast.exhibits}
    assert {"1", "2", "3", "5", "6", "7", "9", "11", "13"} < possible and not possible & {
        "4",
        "8",
        "10",
        "12",
        "G.1",
        "H.1",
    }
    for number, role in (("4", "little"), ("G.1", "vit or tuned"), ("2", "cnn")):
        with pytest.raises(rs.UsageError, match=f"figure {number} cannot be made: no network has the role {role}"):
            Cast.of([FIGURES[number]], Roles.of({"mixer": "m"} if "or" in role else {"vit": VIT}))


@pytest.mark.parametrize("role, number", [("vit", "1"), ("cnn", "1"), ("vit", "6"), ("cnn", "C.2"), ("gap", "C.5")])
def test_either_alone_has_its_own_figures(role, number):
    assert Roles.of({role: "a"}).players([FIGURES[number]]) == ["a"]


def test_several_of_a_role():
    roles = Roles.of({"vit": ["a", "b"], "cnn": ["c", "d"], "little": "l", "seed": "s"})

    def networks(number):
        return FIGURES[number].networks(roles.cases(FIGURES[number]))

    assert networks("1") == networks("5") == (("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"))
    assert networks("3") == ("a", "b") and networks("9") == ("a", "b", "c", "d")
    assert networks("12") == (("a", "l"), ("a", "s"), ("b", "l"), ("b", "s"))
    compared = FIGURES["9"].compared(roles.cases(FIGURES["9"]))
    assert [comparison[2:] for comparison in compared] == [(0, 2), (0, 3), (1, 2), (1, 3)]
    (first, *_) = FIGURES["13"].compared(roles.cases(FIGURES["13"]))
    assert first == Compared("accuracy_more_data", "accuracy, aggregated, middle third, more data, a - l", 0, 2)


def test_unknown_roles():
    with pytest.raises(rs.UsageError, match="unknown role 'vits'; did you mean 'vit'"):
        rs.paper.replicate({"vits": VIT})
    with pytest.raises(rs.UsageError, match="no network plays a role"):
        rs.paper.replicate({})
    with pytest.raises(rs.UsageError, match="unknown preset 'min'"):
        rs.paper.replicate("min")


@pytest.mark.parametrize("roles, images, size", [({"vit": VIT}, 800, 100), ({"vit": VIT}, 64, 8), ("mini", 200, 25)])
def test_of_few_images_batches_are_smaller(roles, images, size):
    planned = rs.paper.plan(roles, rs.ImageSet("sample", images=images), figures=["3"])
    assert planned.protocol["batch_size"] == size
    assert rs.paper.plan(roles, planned.begun.images, figures=["3"], batch_size=16).protocol["batch_size"] == 16


# Numbers


def test_roles_find_the_numbers_of_the_preset(own, tmp_path):
    some = ["1", "2", "3", "5", "7", "9"]
    few = ["--images", IMAGES, "--batch-size", BATCH, "--quiet", "--out", tmp_path]
    repsim("figures", *some, *few)
    for exhibit, figure in own.made:
        if exhibit.number in some:
            place = tmp_path / f"figure-{exhibit.number}"
            for name, table in figure.tables.items():
                pd.testing.assert_frame_equal(load_table(place / f"{name}.csv"), table, rtol=1e-9, check_dtype=False)


def test_figures_are_what_the_separate_functions_give(own, tables):
    options = {"batch_size": BATCH}
    cka = rs.layer_cka([VIT, CNN], images(), **options).table
    across = cka[(cka["model_a"] == VIT) & (cka["model_b"] == CNN)]
    within = cka[cka["model_a"] == cka["model_b"]]
    localized = rs.token_localization([VIT, CNN], images(), **options).table
    last = [part[part["index"] == part["index"].max()] for _, part in localized.groupby("model", sort=False)]
    ratios = rs.residual_norms([VIT, CNN], images(), **options).table
    expected = {
        ("1", "cka", "cka"): within["cka"],
        ("1", "cka", "se"): within["se"],
        ("2", "cka", "cka"): across["cka"],
        ("3", "attention", "distance_px"): rs.attention_distance(VIT, images(), **options).table["distance_px"],
        ("5", "heads", "cka"): rs.head_similarity([VIT, CNN], images(), **options).table["cka"],
        ("7", "residual", "ratio"): ratios["ratio"],
        ("E.2", "residual", "cos_output"): ratios["cos_output"],
        ("9", "localization", "cka"): pd.concat(last)["cka"],
    }
    for (number, name, column), values in expected.items():
        np.testing.assert_allclose(tables[number][name][column], values, atol=1e-6, err_msg=number)
    radii = rs.receptive_fields(VIT, images(), channels=2, batch_size=4).table["radius50_px"]
    fields = tables["6"]["receptive"]
    np.testing.assert_allclose(fields[fields["model"] == VIT]["radius50_px"], radii, atol=1e-6)


def test_checkpoints_are_compared_with_the_vit(tmp_path):
    roles = {"vit": VIT, "little": "vit_mini_3pct", "seed": "vit_mini_100pct_seed1", "tuned": "vit_mini_rotation"}
    replication = rs.paper.replicate(roles, images(), figures=["12", "G.1"], batch_size=BATCH)
    tables_made = {exhibit.number: figure.tables["matched"] for exhibit, figure in replication.made}
    checkpoints = ["vit_mini_3pct", "vit_mini_100pct_seed1"]
    expected = rs.matched_cka([VIT, *checkpoints], images(), batch_size=BATCH).table
    np.testing.assert_allclose(tables_made["12"]["cka"], expected["cka"], atol=1e-9)
    assert list(dict.fromkeys(tables_made["12"]["model_b"])) == checkpoints and set(tables_made["G.1"]["model_b"]) == {
        "vit_mini_rotation"
    }
    assert replication.claims["claim"].str.contains("Fine-tuning").sum() == 1 and len(replication.claims) == 3


def test_every_claim_is_checked_for_each_network():
    replication = rs.paper.replicate(
        {"vit": [VIT, "vit_mini_gap"], "cnn": CNN}, images(), figures=["1", "3", "9"], batch_size=BATCH
    )
    sources = replication.claims["source"]
    for claimed in ("vit_mini - resnet_mini", "vit_mini_gap - resnet_mini"):
        assert sources.str.endswith(f"low with high layers, {claimed}").sum() == 1
        assert sources.str.endswith(f"own patch - rest, interior, {claimed}").sum() == 1
    assert sources.str.contains("Figure 3: nearest head, first / last block").sum() == 2
    for exhibit, figure in replication.made:
        assert not figure.tables["numbers"].duplicated(["key", "models"]).any()
        assert exhibit.draw(figure, "title").axes
    (within, *_) = (figure.tables["cka"] for exhibit, figure in replication.made if exhibit.number == "1")
    assert list(dict.fromkeys(within["model_a"])) == [VIT, CNN, "vit_mini_gap"]


# Figures that a network cannot give


def test_what_a_network_has_not_is_left_out_of_its_figure_only():
    with pytest.warns(rs.Notice, match="figure 3 is without mixer_mini: mixer_mini has no attention"):
        plan = rs.paper.plan(
            {"vit": ["mixer_mini", VIT], "cnn": CNN}, images(), figures=["1", "3", "5", "7"], batch_size=BATCH
        )
    networks = {part.exhibit.number: part.networks for part in plan.parts}
    assert networks["1"] == (("mixer_mini", CNN), (VIT, CNN)) and networks["7"] == ("mixer_mini", VIT, CNN)
    assert networks["3"] == (VIT,) and networks["5"] == ((VIT, CNN),)


def test_a_cnn_as_vit_leaves_out_what_needs_attention():
    with pytest.warns(rs.Notice, match="figure 3 is left out: resnet_mini has no attention"):
        plan = rs.paper.plan({"vit": "resnet_mini", "cnn": "mixer_mini"}, images(), figures=["1", "3", "5"])
    assert [part.exhibit.number for part in plan.parts] == ["1"]
    with pytest.raises(rs.RepsimError, match="figure 3 is left out"):
        rs.paper.replicate({"vit": CNN}, images(), figures=["3"])


def test_probes_need_training_images():
    with pytest.warns(rs.Notice, match="figures 11, 13 are left out: probes need training images"):
        rs.paper.plan({"vit": VIT, "cnn": CNN}, images(), figures=["1", "11", "13"], batch_size=BATCH)


def test_probes_part_a_folder_of_classes_that_all_other_figures_see_whole(tmp_path):
    folder(tmp_path / "mine", {"cat": 30, "dog": 30}, side=28)
    networks = ["--network", f"vit={VIT}", "--network", f"cnn={CNN}", "--data", tmp_path / "mine"]
    said = repsim("figures", "1", "13", *networks, "--out", tmp_path / "o")
    assert "20% of each class are test images, 12 of 60, drawn by seed 0" in said.output
    assert "48 of the 60 test images are training images; probes are tested on the other 12 alone" in said.output
    record = json.loads((tmp_path / "o" / "run.json").read_text())
    (probes,) = record["protocol"]["probes"]
    assert record["images"]["used"] == 56 and probes["test_images"] == 11  # one is in the short batch
    assert probes["training_images"]["split_here"]["training"] == 48
    accuracy = load_table(tmp_path / "o" / "figure-13" / "probe_summary.csv", PROBE_SUMMARY)["accuracy"]
    assert accuracy.between(0, 1).all()


def test_networks_without_the_same_layers_are_not_matched():
    with pytest.warns(rs.Notice, match=f"figure G.1 is without .*{CNN}.* do not have the same layers"):
        plan = rs.paper.plan(
            {"vit": VIT, "tuned": ["vit_mini_rotation", CNN]}, images(), figures=["G.1"], batch_size=BATCH
        )
    assert plan.parts[0].networks == ((VIT, "vit_mini_rotation"),)


# The plan, and the command


def test_the_plan_says_what_would_run_and_nothing_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ["figures", "1", "3", "6", "13", "--network", f"vit={VIT}", "--network", f"cnn={CNN}", "--data", "sample"]
    few = ["--images", IMAGES, "--plan"]
    said = repsim(*asked, *few)
    assert f"1: {VIT}, {CNN}" in said.stdout and f"one pass of {IMAGES} images in batches of 8" in said.stdout
    assert f"one pass of {IMAGES} images in batches of 4 with gradients" in said.stdout
    assert "to fit probes" in said.stdout and "MiB" in said.stdout
    planned = json.loads(repsim(*asked, *few, "--json", "--quiet").stdout)
    assert [entry["number"] for entry in planned["figures"]] == ["1", "3", "6", "13"]
    assert planned["roles"] == {"vit": [VIT], "cnn": [CNN]}
    assert all(entry["memory_bytes"] > 0 for entry in planned["passes"])
    assert not list(tmp_path.iterdir())
    sizes = [entry["images"] for entry in planned["passes"] if entry["networks"] == [VIT, CNN]]
    assert IMAGES in sizes


def test_the_command_writes_what_the_function_saves(own, tmp_path):
    networks = ["--network", f"vit={VIT}", "--network", f"cnn={CNN}", "--data", "sample", "--channels", 2]
    said = repsim("figures", *CHOSEN, *networks, "--images", IMAGES, "--batch-size", BATCH, "--out", tmp_path / "a")
    assert "passes over images, and the memory of each:" in said.output and "memory: " not in said.output
    assert "The six findings of the paper, and the results here:" in said.output
    own.save(tmp_path / "b")
    places = [tmp_path / name for name in "ab"]
    files = [sorted(path.relative_to(place) for path in place.rglob("*") if path.is_file()) for place in places]
    assert files[0] == files[1] and {"claims.csv", "claims.md", "report.html"} <= set(map(str, files[0]))
    for file in files[0]:
        if file.suffix not in (".json", ".html"):
            assert (places[0] / file).read_bytes() == (places[1] / file).read_bytes(), file
    record = json.loads((places[0] / "figure-2" / "run.json").read_text())
    assert record["preset"] == "own" and record["roles"] == [{"vit": [VIT], "cnn": [CNN]}]


def test_weights_and_arguments_of_roles(tmp_path):
    asked = ["figures", "1", "--network", "vit=vit_mini", "--network", "vit=vit_mini", "--data", "noise", "--plan"]
    few = ["--images", 16, "--batch-size", 8, "--json"]
    weights = rs.networks.minis.WEIGHTS / "vit_mini_3pct.safetensors"
    said = json.loads(repsim(*asked, *few, "--weights", "vit=random", "--weights", f"vit={weights}").stdout)
    assert said["roles"] == {"vit": ["vit_mini-random", "vit_mini@vit_mini_3pct"]}
    said = json.loads(repsim(*asked, *few, "--weights", "random").stdout)
    assert said["roles"] == {"vit": ["vit_mini-random"]}
    deep = [*asked[:4], *asked[6:], *few, "--weights", "random", "--arg", "vit.depth=2"]
    assert json.loads(repsim(*deep).stdout)["roles"] == {"vit": ["vit_mini-random"]}


@pytest.mark.parametrize(
    "options, says",
    [
        (["--network", "vits=vit_mini"], "unknown role 'vits'; did you mean 'vit'?"),
        (["--network", "vit_mini"], "--network takes ROLE=..., got 'vit_mini'"),
        (["--network", "vit="], "--network takes ROLE=..., got 'vit='"),
        (["--network", "vit=vit_mini", "--preset", "mini"], "give --network or --preset, not both"),
        (["--network", "vit=vit_mini", "--weights", "cnn=random"], "--weights cnn=random belongs to no network"),
        (["--network", "vit=vit_mini", "--weights", "x.pt"], "say whose weights these are, --weights ROLE=x.pt"),
        (["--network", "vit=vit_mini", "--arg", "depth=2"], "--arg takes ROLE...., got 'depth=2'"),
        (["--arg", "vit.depth=2"], "are of networks that --network names"),
        (
            ["--network", "vit=a", "--network", "vit=b", *["--weights", "vit=random"] * 3],
            "give --weights vit= once, or once per --network vit=: there are 2 models and 3 weights",
        ),
    ],
)
def test_bad_input(options, says):
    assert says in repsim("figures", *options, code=2).output


def test_it_goes_on_where_it_was(own, tables, tmp_path):
    some = ["1", "6"]
    options = {"figures": some, "batch_size": BATCH, "channels": 2}
    again = interrupted(
        tmp_path, lambda resume: rs.paper.replicate({"vit": VIT, "cnn": CNN}, images(), resume=resume, **options)
    )
    for exhibit, figure in again.made:
        for name, table in figure.tables.items():
            assert table.to_csv() == tables[exhibit.number][name].to_csv(), (exhibit.number, name)


# Findings


def numbers(*rows):
    return Numbers(planted(*rows), False)


def test_findings_are_sentences_of_the_numbers():
    measured = {
        "1": numbers(("low_with_high_difference", ("a", "b"), "", 0.034, 0.028, 0.04)),
        "3": numbers(("nearest_head_ratio", ("a",), "", 0.98, 0.97, 0.99)),
        "9": numbers(
            ("own_minus_rest_difference", ("a", "b"), "", -0.2, -0.3, -0.1),
            ("own_minus_rest_difference", ("c", "b"), "", 0.1, -0.1, 0.3),
        ),
    }
    table = findings(measured)
    assert len(table) == 6
    assert table["verdict"].tolist() == ["seen", "not measured", "not seen", "not measured", "not seen", "not measured"]
    uniform, global_, local, _, places, _ = table["found"]
    assert uniform.startswith(
        "Low and high layers are more alike in a than in b, by a CKA of 0.034 (0.028 to 0.04). 1 "
    )
    assert global_ == "No number of this run tells of it; figures 5, 6 would."
    assert local.startswith("The nearest head of the first block of a looks 0.98 times as far as that of the last")
    assert places.startswith("Tokens stand out at their own place less in a than in b, by a CKA of 0.2 (0.1 to 0.3); ")
    assert (
        "more in c than in b, by a CKA of 0.1 (-0.1 to 0.3), undecided. 2 checks: 1 disagrees, 1 undecided." in places
    )


def test_what_is_not_finite_is_told_as_no_number():
    measured = {
        "7": numbers(("skip_over_branch_difference", ("a", "b"), "skip over branch, a - b", -np.inf, np.nan, np.nan))
    }
    (told,) = findings(measured).query("verdict != 'not measured'")["found"]
    assert told == "No number is defined of Figure 7: skip over branch, a - b. 1 check: 1 undecided."
    random = {figure: rows._replace(random=True) for figure, rows in measured.items()}
    assert findings(random)["found"].str.endswith("1 undecided. Weights are random.").sum() == 1


def test_claims_without_a_number_are_named():
    measured = {"7": numbers(("skip_over_branch_difference", ("a", "b"), "", 1.0, 0.9, 1.1))}
    (said,) = unchecked(measured)
    assert "CLS is carried more than other tokens in the first half (Figure 7)" in said and "Skips carry" not in said
    assert unchecked({"3": numbers(("nearest_head_ratio", ("a",), "", 0.4, 0.3, 0.5))}) == []


def test_a_case_holds_one_player_or_several():
    assert case(vit="a", cnn=["b", "c"], gap=[]) == {"vit": ("a",), "cnn": ("b", "c")}


# Pictures of several networks


def draw(number, **tables):
    record = {"random": False, "preset": "own", "images": {"batches": 3}}
    return FIGURES[number].draw(
        Made({name: pd.DataFrame(rows) for name, rows in tables.items()}, record=record), "title"
    )


def test_each_reference_has_a_panel_of_its_own():
    depth = [0.0, 0.5, 1.0]
    rows = [
        {"model_a": a, "model_b": b, "layer": f"l{d}", "index": 0, "depth": d, "cka": 0.5, "se": 0.1}
        for a, b in (("a", "x"), ("b", "x"), ("b", "y"))
        for d in depth
    ]
    first, second = draw("12", matched=rows).axes
    assert [len(ax.lines) for ax in (first, second)] == [1, 2]
    assert [line.get_xdata().tolist() for line in first.lines] == [depth]
    assert [ax.get_title() for ax in (first, second)] == ["compared with a", "compared with b"]


def test_receptive_fields_have_a_row_for_each_network():
    names = [(model, f"l{i}") for model in "abc" for i in range(9)]
    table = [(model, layer, i % 9, 0.5, 1.0, 0.1, 2.0, 0.1, 0.5, 0.1) for i, (model, layer) in enumerate(names)]
    maps = {f"{model}/{layer}": np.eye(4) for model, layer in names}
    fields = Made({"receptive": pd.DataFrame(table, columns=RECEPTIVE)}, maps)
    figure = FIGURES["6"].draw(fields, "title")
    assert figure.axes[0].get_gridspec().get_geometry() == (3, 6)
    assert [ax.get_title()[0] for ax in figure.axes] == [*"aaaaaabbbbbbcccccc"]


def test_ratios_of_networks_whose_blocks_share_no_tokens_are_curves():
    rows = [
        {"model": "a", "sublayer": "unit", "block": block, "depth": block / 2, "token": str(token), "ratio": 2.0}
        | {"cos_output": 0.5}
        for block in range(3)
        for token in range(4 - block)
    ]
    left, right = draw("E.1", residual=rows).axes
    assert len(left.lines) == 2 and len(right.lines) == 1  # one line is at ratio 1


# Another training run


def test_training_runs_are_a_component_of_their_own():
    """The spread over training runs is that of numbers made of each run; numbers of other networks have no spread."""
    chosen, again = ["1", "3"], "vit_mini_100pct_seed1"
    replication = rs.paper.replicate(
        {"vit": VIT, "cnn": CNN, "seed": again}, images(), figures=chosen, batch_size=BATCH
    )
    other = rs.paper.replicate({"vit": again, "cnn": CNN}, images(), figures=chosen, batch_size=BATCH)
    for row, of_run in zip(replication.claims.itertuples(), other.claims.itertuples(), strict=True):
        values = np.array([row.measured, of_run.measured])
        assert (row.seeds, of_run.seeds) == (2, 1) and np.isnan(of_run.sd_seeds)
        assert row.sd_seeds == pytest.approx(values.std(ddof=1))
        assert row.se == pytest.approx((row.high - row.low) / 2 / t.ppf(0.975, IMAGES // BATCH - 1))
    tables = {exhibit.number: figure.tables for exhibit, figure in replication.made}
    of_cnn = tables["1"]["numbers"].set_index("models").loc[json.dumps([CNN])]
    assert of_cnn["seeds"] == 1 and np.isnan(of_cnn["sd_seeds"])
    assert set(tables["3"]["attention"]["model"]) == {VIT}  # pictures are of one run
