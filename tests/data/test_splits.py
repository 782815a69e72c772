"""No patient on two sides, the paper's counts, and one line for every cut that cannot be made."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from configs.default import get_config
from medadv_jax.data.breakhis import BreakHis
from medadv_jax.data.chest_xray import ChestXray
from medadv_jax.data.examples import Example, audit_splits, linked_groups
from medadv_jax.data.splits import SPLITS, Splits, changed_images, make_splits
from medadv_jax.errors import UserError

# Slides of one case that BreakHis files under several names (class, subtype, year-slide).
SHARED_CASES = {
    "14-22549": ("B_A-14-22549AB", "B_A-14-22549CD", "B_A-14-22549G"),
    "14-29960": ("B_F-14-29960AB", "B_A-14-29960CD"),
    "14-14134": ("B_F-14-14134", "B_F-14-14134E"),
    "14-21998": ("B_PT-14-21998AB", "B_F-14-21998CD", "B_F-14-21998EF"),
    "14-23060": ("B_F-14-23060AB", "B_F-14-23060CD"),
    "14-16184": ("B_TA-14-16184", "B_TA-14-16184CD"),
    "14-13412": ("M_DC-14-13412", "M_LC-14-13412"),
    "14-15570": ("M_LC-14-15570", "M_LC-14-15570C"),
    "14-18842": ("M_MC-14-18842", "M_MC-14-18842D"),
    "14-19979": ("M_MC-14-19979", "M_MC-14-19979C"),
}


def data_config(**fields):
    config = get_config().data
    config.update(fields)
    return config


def example(name: str, label: int, group: str, source_split: str = "", md5: str = "") -> Example:
    return Example(name, label, group, 0, source_split, md5 or f"md5-{name}")


def random_examples(
    seed: int, num_groups: int, largest: int = 6, mixed: float = 0.1
) -> list[Example]:
    """Patients with 1 to `largest` images; a share `mixed` of them has images of both classes."""
    rng = np.random.default_rng(seed)
    examples = []
    for group in range(num_groups):
        both = rng.random() < mixed
        for _ in range(rng.integers(1, largest + 1)):
            label = int(rng.integers(2)) if both else int(group % 3 > 0)
            examples.append(example(f"x{seed}-{len(examples):05d}", label, f"g{group:04d}"))
    return examples


def parts_of(splits: Splits) -> dict[str, list[int]]:
    return {name: getattr(splits, name) for name in SPLITS}


def ids_of(splits: Splits, examples: list[Example]) -> dict[str, list[str]]:
    return {name: [examples[i].id for i in part] for name, part in parts_of(splits).items()}


def class_counts(splits: Splits, examples: list[Example]) -> list[tuple[int, int]]:
    return [
        (sum(examples[i].label == 0 for i in part), sum(examples[i].label == 1 for i in part))
        for part in parts_of(splits).values()
    ]


def groups_crossing(splits: Splits, examples: list[Example]) -> int:
    groups = [{examples[i].group for i in part} for part in parts_of(splits).values()]
    return sum(len(one & other) for one, other in itertools.combinations(groups, 2))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("per_class", [0, 40])
def test_no_group_crosses_and_every_class_is_everywhere(seed, per_class):
    examples = random_examples(seed, num_groups=9 + 7 * seed, largest=1 + 3 * seed)
    splits = make_splits(examples, data_config(per_class=per_class), seed)
    assert groups_crossing(splits, examples) == 0
    assert all(min(counts) > 0 for counts in class_counts(splits, examples))
    chosen = list(itertools.chain(*parts_of(splits).values()))
    assert len(chosen) == len(set(chosen))
    if per_class == 0:
        assert len(chosen) == len(examples)
    else:
        assert all(benign == malignant for benign, malignant in class_counts(splits, examples))


@pytest.mark.parametrize("split", ["patient", "image"])
def test_the_papers_counts_are_met_exactly(split):
    examples = random_examples(0, num_groups=1400)
    splits = make_splits(examples, data_config(split=split), 0)
    assert class_counts(splits, examples) == [(700, 700), (150, 150), (150, 150)]
    assert not any("per_class" in note for note in splits.notes)


def test_all_training_images_leave_the_other_parts_as_they_are():
    examples = random_examples(0, num_groups=60)
    some = make_splits(examples, data_config(per_class=40), 0)
    every = make_splits(examples, data_config(per_class=40, train_all=True), 0)
    assert (every.validation, every.test) == (some.validation, some.test)
    assert len(every.train) > len(some.train)
    assert set(every.train) > set(some.train)
    assert groups_crossing(every, examples) == 0
    patients = {examples[i].group for i in every.train}
    assert len(every.train) == sum(one.group in patients for one in examples)


def test_one_image_a_patient_uses_the_whole_smaller_class():
    examples = [example(f"{i:03d}", int(i >= 100), f"g{i}") for i in range(300)]
    splits = make_splits(examples, data_config(), 0)
    assert class_counts(splits, examples) == [(70, 70), (15, 15), (15, 15)]
    assert any("data.per_class=1000" in note and "70/15/15" in note for note in splits.notes)


@pytest.mark.parametrize(
    "fields", [{}, {"split": "image"}, {"num_folds": 4, "fold": 2}, {"per_class": 0}]
)
def test_the_order_of_the_examples_does_not_matter(fields):
    examples = random_examples(3, num_groups=80)
    twin = next(e for e in examples[::-1] if e.label == examples[5].label)
    examples[5] = dataclasses.replace(examples[5], md5=twin.md5)
    shuffled = examples[::-1]
    config = data_config(**({"per_class": 60} | fields))
    one, other = make_splits(examples, config, 1), make_splits(shuffled, config, 1)
    assert one.to_json(examples) == other.to_json(shuffled)


@pytest.mark.parametrize(
    "fields", [{}, {"per_class": 0}, {"split": "image"}, {"num_folds": 3, "per_class": 0}]
)
def test_the_seed_chooses_the_split(fields):
    examples = random_examples(4, num_groups=90)
    config = data_config(**fields)
    first = make_splits(examples, config, 0)
    assert first == make_splits(examples, config, 0)
    assert set(first.test) != set(make_splits(examples, config, 1).test)


def breakhis_example(slide: str, magnification: int, number: int, group: str) -> Example:
    name = f"SOB_{slide}-{magnification}-{number:03d}.png"
    return example(name, int(slide.startswith("M")), group)


def breakhis_examples() -> list[Example]:
    """Every shared case of BreakHis, and others, under their real slide names."""
    others = {f"14-{9000 + i}": (f"{'BM'[i % 2]}_X-14-{9000 + i}",) for i in range(12)}
    return [
        breakhis_example(slide, magnification, number, group)
        for group, slides in (SHARED_CASES | others).items()
        for slide in slides
        for magnification, number in itertools.product((40, 400), range(1, 6))
    ]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("fields", [{"per_class": 0}, {}, {"num_folds": 5, "fold": 1}])
def test_shared_breakhis_cases_stay_together(seed, fields):
    examples = breakhis_examples()
    splits = make_splits(examples, data_config(name="breakhis", **fields), seed)
    sides = {}
    for name, part in ids_of(splits, examples).items():
        for image in part:
            case = next((c for c, s in SHARED_CASES.items() if image[4:].startswith(s)), None)
            sides.setdefault(case, set()).add(name)
    assert all(len(names) == 1 for case, names in sides.items() if case)
    assert len(sides) > len(SHARED_CASES) * 2 // 3


def test_the_parser_knows_the_shared_cases():
    for group, slides in SHARED_CASES.items():
        assert {BreakHis.parse(f"SOB_{slide}-40-001.png").group for slide in slides} == {group}


def real_examples(folder: Path, builder: type[BreakHis] | type[ChestXray]) -> list[Example]:
    """Reads the names alone; the loader's own tests read the images."""
    paths = [p for p in folder.rglob("*") if p.suffix in (".png", ".jpeg")]
    names = sorted(p.relative_to(folder).as_posix() for p in paths)
    parsed = {name: builder.parse(name) for name in names}
    return [example(n, p.label, p.group, p.source_split) for n, p in parsed.items()]


def test_the_real_breakhis_images_are_cut_by_case(real_data_dir):
    examples = real_examples(real_data_dir / "BreaKHis_v1", BreakHis)
    splits = make_splits(examples, data_config(name="breakhis"), 0)
    counts = class_counts(splits, examples)
    assert all(benign == malignant > 0 for benign, malignant in counts)
    assert groups_crossing(splits, examples) == 0


@pytest.mark.parametrize("split", ["patient", "official"])
def test_the_real_xrays_give_the_papers_counts(real_data_dir, split):
    examples = real_examples(real_data_dir / "chest_xray", ChestXray)
    splits = make_splits(examples, data_config(split=split), 0)
    counts = class_counts(splits, examples)
    assert counts[:2] == [(700, 700), (150, 150)]
    assert counts[2] == ((150, 150) if split == "patient" else (117, 202))
    assert groups_crossing(splits, examples) == 0


def test_copies_one_is_kept_and_their_groups_become_one():
    examples = random_examples(5, num_groups=60, mixed=0)
    copy = dataclasses.replace(examples[0], id="zz-copy", group="another name")
    friend = example("zz-friend", examples[0].label, "another name")
    examples += [copy, friend]
    for seed in range(5):
        splits = make_splits(examples, data_config(per_class=0), seed)
        chosen = ids_of(splits, examples)
        assert not any("zz-copy" in part for part in chosen.values())
        home = next(name for name, part in chosen.items() if examples[0].id in part)
        assert "zz-friend" in chosen[home]
        assert splits.audit["copies"] == [{"kept": examples[0].id, "dropped": ["zz-copy"]}]
        assert "1 groups joined" in " ".join(splits.notes)


def test_copies_link_through_a_chain():
    chain = [("a", "1"), ("b", "1"), ("b", "2"), ("c", "2"), ("d", "3")]
    examples = [example(str(i), 0, group, md5=md5) for i, (group, md5) in enumerate(chain)]
    assert linked_groups(examples) == ["a", "a", "a", "a", "d"]
    assert linked_groups(examples[::-1]) == ["d", "a", "a", "a", "a"]


@pytest.mark.parametrize("split", ["patient", "image"])
def test_copies_that_contradict_each_other_are_all_dropped(split):
    examples = random_examples(6, num_groups=60)
    liar = dataclasses.replace(examples[0], id="zz", label=1 - examples[0].label)
    splits = make_splits([*examples, liar], data_config(split=split, per_class=0), 0)
    assert splits.audit["contradictions"] == [[examples[0].id, "zz"]]
    chosen = set(itertools.chain(*ids_of(splits, [*examples, liar]).values()))
    assert chosen == {e.id for e in examples[1:]}


def test_image_split_says_that_it_leaks_and_still_separates_copies():
    examples = random_examples(7, num_groups=60)
    examples += [dataclasses.replace(e, id=f"zz{e.id}") for e in examples[:20]]
    splits = make_splits(examples, data_config(split="image"), 0)
    assert groups_crossing(splits, examples) > 0
    assert any("leaks" in note for note in splits.notes)
    assert not any(splits.audit["md5_in_common"].values())


def official_examples() -> list[Example]:
    examples = random_examples(8, num_groups=150)
    return [
        dataclasses.replace(
            e, source_split="test" if i % 150 > 120 else ("train", "val")[i % 9 == 0]
        )
        for i, e in enumerate(examples)
    ]


def test_official_keeps_the_test_folder_and_leaves_its_groups_out_of_training():
    examples = official_examples()
    in_test = next(e for e in examples if e.source_split == "test")
    lonely = example("zz-copy", in_test.label, "lonely", "train", in_test.md5)
    examples.append(lonely)
    splits = make_splits(examples, data_config(split="official", per_class=0), 0)
    published = {e.id for e in examples if e.source_split == "test"}
    assert set(ids_of(splits, examples)["test"]) == published
    assert groups_crossing(splits, examples) == 0
    assert splits.audit["left_out_group_in_test"]["images"] > 0
    assert splits.audit["copies_of_test_images"] == ["zz-copy"]
    assert "zz-copy" not in ids_of(splits, examples)["train"]
    tested = {examples[i].group for i in splits.test} | {"lonely"}
    usable = {e.id for e in examples if e.group not in tested}
    chosen = ids_of(splits, examples)
    assert {*chosen["train"], *chosen["validation"]} == usable


def test_official_balances_training_alone():
    examples = official_examples()
    splits = make_splits(examples, data_config(split="official", per_class=40), 0)
    counts = class_counts(splits, examples)
    assert counts[:2] == [(28, 28), (6, 6)]
    assert sum(counts[2]) == sum(e.source_split == "test" for e in examples)


def test_official_breakhis_reads_the_published_fold(tmp_path):
    examples = [dataclasses.replace(e, id=f"some/dir/{e.id}") for e in breakhis_examples()]
    lines = [
        f"{Path(e.id).name}|40|1|{'test' if int(e.group[3:]) % 3 == 0 else 'train'}"
        for e in examples[:-10]
    ]
    folds = tmp_path / "dsfold1.txt"
    folds.write_text("\n".join(lines) + "\n")
    config = data_config(name="breakhis", split="official", official_list=str(folds))
    splits = make_splits(examples, config, 0)
    assert {examples[i].group for i in splits.test} == {
        e.group for e in examples[:-10] if int(e.group[3:]) % 3 == 0
    }
    assert splits.audit["in_no_published_split"] == 10


def breakhis_fold(encoding: str, folder: str = "", change=str) -> bytes:
    """Returns a fold file of `breakhis_examples`: every third case is tested."""
    lines = [
        f"{folder}{change(Path(e.id).name)}|40|1|{'train' if int(e.group[3:]) % 3 else 'test'}"
        for e in breakhis_examples()
    ]
    return "\n".join(lines).encode(encoding)


@pytest.mark.parametrize(
    "content",
    [
        breakhis_fold("utf-8"),
        breakhis_fold("utf-8-sig"),
        breakhis_fold("utf-16"),
        breakhis_fold("utf-16-be"),
        breakhis_fold("utf-16-le"),
        breakhis_fold("utf-8", "BreaKHis_v1/40X/"),
        breakhis_fold("utf-8", "C:\\BreaKHis_v1\\40X\\"),
        breakhis_fold("utf-8", change=str.lower),  # pyright: ignore[reportArgumentType]
    ],
)
def test_fold_files_of_every_encoding_and_system(tmp_path, content):
    examples, path = breakhis_examples(), tmp_path / "dsfold1.txt"
    path.write_bytes(content)
    config = data_config(name="breakhis", split="official", official_list=str(path), per_class=0)
    splits = make_splits(examples, config, 0)
    assert {examples[i].id for i in splits.test} == {
        e.id for e in examples if int(e.group[3:]) % 3 == 0
    }
    assert splits.audit["in_no_published_split"] == 0
    assert any(f"all {len(splits.test)} published test images" in note for note in splits.notes)
    assert not any("missing" in note for note in splits.notes)


def test_listed_images_that_are_missing_are_counted(tmp_path):
    path = tmp_path / "dsfold1.txt"
    examples = [e for e in breakhis_examples() if "DC-14-13412" not in e.id]
    listed = [f"SOB_B_A-14-{i}-200-001.png|200|1|{'test' if i < 7 else 'train'}" for i in range(20)]
    # Copies that are left out on purpose are not missing.
    dropped = [f"SOB_M_DC-14-13412-200-{i:03}.png|200|1|test" for i in range(5)]
    path.write_bytes(breakhis_fold("utf-8") + "\n".join(["", *listed, *dropped]).encode())
    config = data_config(name="breakhis", split="official", official_list=str(path), per_class=0)
    splits = make_splits(examples, config, 0)
    tests = len(splits.test)
    assert any(
        f"20 of {len(examples) + 20} listed images are missing (7 of {tests + 7} test images)"
        in note
        for note in splits.notes
    )
    assert any(f"{tests} test images, not the {tests + 7} published" in n for n in splits.notes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no such file"),
        ("SOB_B_A-14-1-40-001.png|40|1|train\n", "none of its 1 names"),
        ("SOB_B_A-14-1-40-001.png 40 train\n", "line 1"),
        ("SOB_B_A-14-1-40-001.png|40|train\n", "line 1"),
        ("a.png|40|1|train\na.png|40|2|test\n", "in train and in test"),
    ],
)
def test_a_bad_official_list_is_named(tmp_path, text, said):
    path = tmp_path / "list.txt"
    if text is not None:
        path.write_text(text)
    config = data_config(name="breakhis", split="official", official_list=str(path))
    with pytest.raises(UserError, match=said):
        make_splits(breakhis_examples(), config, 0)


@pytest.mark.parametrize("per_class", [0, 50])
def test_folds_test_every_example_once(per_class):
    examples = random_examples(9, num_groups=70)
    tested, chosen = [], set()
    for fold in range(5):
        config = data_config(num_folds=5, fold=fold, per_class=per_class)
        splits = make_splits(examples, config, 0)
        assert groups_crossing(splits, examples) == 0
        assert all(min(counts) > 0 for counts in class_counts(splits, examples))
        tested += splits.test
        chosen = {*splits.train, *splits.validation, *splits.test}
    assert sorted(tested) == sorted(chosen)
    assert len(chosen) == (2 * per_class or len(examples))


def one_sided(count: int) -> list[Example]:
    benign = [example(f"b{i}", 0, f"b{i % 2}") for i in range(count)]
    return benign + [example(f"m{i}", 1, f"m{i}") for i in range(20)]


@pytest.mark.parametrize(
    ("examples", "fields", "said"),
    [
        (one_sided(20), {}, r"data\.split=patient: class negative has 2 patients.*split=image"),
        (one_sided(0), {}, "0 images of class negative"),
        (random_examples(0, 30), {"split": "official"}, r"data\.split=official: 0 test"),
        (breakhis_examples(), {"split": "official", "name": "breakhis"}, "official_list=''"),
        (random_examples(0, 30), {"split": "vertical"}, "vertical.*patient"),
        (random_examples(0, 30), {"num_folds": 40}, r"data\.num_folds=40: class negative has"),
        (random_examples(0, 30), {"num_folds": 5, "fold": 5}, r"data\.fold=5"),
        (random_examples(0, 30), {"num_folds": 5, "split": "image"}, r"data\.num_folds=5"),
        (random_examples(0, 30), {"per_class": 2}, r"data\.per_class=2"),
        (random_examples(0, 30) * 2, {}, "not unique"),
    ],
)
def test_a_cut_that_cannot_be_made_is_one_line(examples, fields, said):
    with pytest.raises(UserError, match=said) as error:
        make_splits(examples, data_config(**fields), 0)
    assert "\n" not in str(error.value)


def test_two_groups_of_a_class_are_enough_for_the_image_split():
    counts = class_counts(make_splits(one_sided(20), data_config(split="image"), 0), one_sided(20))
    assert counts == [(14, 14), (3, 3), (3, 3)]


def test_the_audit_finds_what_was_planted():
    examples = [example(str(i), i % 2, f"g{i}") for i in range(6)]
    examples.append(example("6", 0, "g0"))
    examples.append(example("7", 1, "g7", md5=examples[1].md5))
    parts = {"train": [0, 1], "validation": [2, 3], "test": [4, 5]}
    clean = audit_splits(examples, parts)
    assert not any(names for kind in clean.values() for names in kind.values())
    for extra, said in [(6, "test share 1 groups.*g0"), (7, "groups.*g1"), (0, "groups")]:
        with pytest.raises(UserError, match=said):
            audit_splits(examples, parts | {"test": [4, 5, extra]})
    with pytest.raises(UserError, match=r"1 md5.*md5-1"):
        audit_splits(examples, parts | {"test": [4, 7]}, allow_groups=True)
    same_id = [*examples, example("0", 0, "g9", md5="other")]
    with pytest.raises(UserError, match=r"1 ids.*0"):
        audit_splits(same_id, parts | {"test": [8]})
    seen = audit_splits(examples, parts | {"test": [6]}, allow_groups=True)
    assert seen["groups_in_common"]["train/test"] == ["g0"]


def test_few_large_groups_leave_no_class_out():
    """As uneven as the 138 real images of BreakHis: 43 benign ones in few cases."""
    benign = [(f"b{i}", 0, size) for i, size in enumerate([18, 11, 6, 4, 2, 1, 1])]
    malignant = [(f"m{i}", 1, size) for i, size in enumerate([20, 18, 16, 12, 9, 8, 6, 3, 2, 1])]
    examples = [
        example(f"{group}-{i}", label, group)
        for group, label, size in benign + malignant
        for i in range(size)
    ]
    for seed in range(10):
        splits = make_splits(examples, data_config(), seed)
        counts = class_counts(splits, examples)
        assert all(zero == one > 0 for zero, one in counts)
        assert sum(zero for zero, _ in counts) >= 35
        assert groups_crossing(splits, examples) == 0


def test_the_written_splits_are_plain_json():
    examples = random_examples(10, num_groups=40)
    splits = make_splits(examples, data_config(), 0)
    content = json.loads(json.dumps(splits.to_json(examples)))
    assert content["train"] == [examples[i].id for i in splits.train]
    counts = content["counts"]["test"]
    assert counts["images"] == len(splits.test) == sum(counts["by_class"].values())
    assert counts["groups"] == len({examples[i].group for i in splits.test})
    assert content["audit"]["ids_in_common"]["train/test"] == []


def test_splits_keep_the_content_of_every_image_in_them():
    examples = random_examples(2, num_groups=60)
    splits = make_splits(examples, data_config(per_class=30), 0)
    content = splits.to_json(examples)
    chosen = set(itertools.chain(*parts_of(splits).values()))
    assert content["md5"] == {examples[i].id: examples[i].md5 for i in chosen}
    now = {e.id: e.md5 for e in examples}
    assert changed_images(content, now) == []
    one, other = content["train"][3], content["test"][1]
    now |= {one: "x", other: "y"}
    assert changed_images(content, now) == sorted([one, other])
    assert changed_images(content, now, ("train", "validation")) == [one]
    del content["md5"]  # as earlier versions wrote it
    assert changed_images(content, now) == []
