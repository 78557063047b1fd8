"""Versions never change, aliases move and move back, damaged files are refused."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from s3_server import s3_server

from cluster.errors import RegistryError
from cluster.models import model_digest
from cluster.registry import AdapterManifest, Registry, Split
from cluster.storage import Store, folder_and_name


@pytest.fixture
def registry(tmp_path):
    return Registry(str(tmp_path / "registry"))


def adapter(tmp_path, content):
    folder = tmp_path / f"adapter-{content}"
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"r": 8}))
    (folder / "adapter_model.safetensors").write_bytes(content.encode())
    return folder


def manifest(name="reconcile", base="abc"):
    return AdapterManifest(
        name=name, base_model="tiny", base_digest=base, rank=8, alpha=16, target_modules=["q_proj"],
        task="reconcile", task_digest="t", dataset_digest="d", teacher="program:x", train={},
        gates=[],
    )  # fmt: skip


def test_versions_count_up_and_the_same_adapter_is_the_same_version(registry, tmp_path):
    first = registry.publish(adapter(tmp_path, "one"), manifest())
    second = registry.publish(adapter(tmp_path, "two"), manifest())
    again = registry.publish(adapter(tmp_path, "one"), manifest())
    assert [first.model_name, second.model_name] == ["reconcile@v1", "reconcile@v2"]
    assert again.version == 1
    assert registry.versions("reconcile") == [1, 2]
    assert registry.names() == ["reconcile"]


def test_promote_and_rollback_keep_the_history(registry, tmp_path):
    for content in ("one", "two", "three"):
        registry.publish(adapter(tmp_path, content), manifest())
    for version in (1, 2, 3):
        registry.promote("reconcile", version)
    assert registry.resolve("reconcile") == ("reconcile", 3)
    assert registry.rollback("reconcile") == 2
    assert registry.rollback("reconcile") == 1
    with pytest.raises(RegistryError, match="no earlier version"):
        registry.rollback("reconcile")
    actions = [(m["action"], m["version"]) for m in registry.history("reconcile", "prod")]
    assert actions[-2:] == [("rollback", 2), ("rollback", 1)]


def test_a_changed_file_is_refused(registry, tmp_path):
    registry.publish(adapter(tmp_path, "one"), manifest())
    file = tmp_path / "registry/reconcile/v1/adapter_model.safetensors"
    file.write_bytes(b"damaged")
    with pytest.raises(RegistryError, match="changed or damaged"):
        registry.fetch("reconcile", 1, tmp_path / "cache")


def test_a_version_without_its_manifest_does_not_exist(registry, tmp_path):
    registry.publish(adapter(tmp_path, "one"), manifest())
    half = tmp_path / "registry/reconcile/v2"
    half.mkdir()
    (half / "adapter_model.safetensors").write_bytes(b"half written")
    assert registry.versions("reconcile") == [1]
    assert registry.publish(adapter(tmp_path, "two"), manifest()).version == 2
    assert registry.fetch("reconcile", 2, tmp_path / "cache").is_dir()


@pytest.fixture
def s3(monkeypatch):
    """A small S3 and the URI of a registry in it; its query says where it listens."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with s3_server() as server:
        yield server, f"s3://bucket/registry?{server.query}"


@pytest.mark.slow
def test_an_object_store_holds_a_registry(s3, tmp_path):
    server, uri = s3
    registry = Registry(uri)
    registry.publish(adapter(tmp_path, "one"), manifest())
    assert registry.publish(adapter(tmp_path, "two"), manifest()).version == 2
    assert registry.publish(adapter(tmp_path, "one"), manifest()).version == 1
    registry.promote("reconcile", 2)
    assert registry.resolve("reconcile") == ("reconcile", 2)
    assert registry.names() == ["reconcile"]
    folder = registry.fetch("reconcile", 2, tmp_path / "cache")
    assert (folder / "adapter_model.safetensors").read_bytes() == b"two"
    # S3 has empty objects that stand for folders.
    files = ("adapter_config.json", "adapter_model.safetensors", "manifest.json")
    assert sorted(key for key in server.objects if not key.endswith("/")) == [
        "bucket/registry/reconcile/aliases.json",
        *(f"bucket/registry/reconcile/v{n}/{file}" for n in (1, 2) for file in files),
    ]


@pytest.mark.slow
def test_on_an_object_store_the_manifest_is_written_last(s3, tmp_path):
    server, uri = s3
    registry = Registry(uri)
    registry.publish(adapter(tmp_path, "one"), manifest())
    assert list(server.objects)[-1] == "bucket/registry/reconcile/v1/manifest.json"
    server.refused.append("v2/manifest.json")
    with pytest.raises(OSError, match="ACCESS_DENIED"):
        registry.publish(adapter(tmp_path, "two"), manifest())
    assert registry.versions("reconcile") == [1]
    assert not [key for key in server.objects if "/v2/" in key and not key.endswith("/")]
    server.refused.clear()
    assert registry.publish(adapter(tmp_path, "two"), manifest()).version == 2


@pytest.mark.slow
def test_many_who_need_a_version_at_once_all_get_it(s3, tmp_path):
    server, uri = s3
    Registry(uri).publish(adapter(tmp_path, "one"), manifest())
    server.delay_s = 0.02  # nobody is done before the last has begun
    with ThreadPoolExecutor(8) as pool:
        folders = set(
            pool.map(lambda _: Registry(uri).fetch("reconcile", 1, tmp_path / "cache"), range(8))
        )
    (folder,) = folders
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.slow
def test_a_folder_below_a_uri_keeps_its_query(s3):
    _, uri = s3
    below = Store(uri) / "usage" / "2026-11-22"
    assert below.uri == uri.replace("registry?", "registry/usage/2026-11-22?")
    below.write_json("a.json", {"here": True})
    assert Store(uri).read_json("usage/2026-11-22/a.json") == {"here": True}
    assert (Store("/data/what?") / "x").path() == "/data/what?/x"
    beside, name = folder_and_name(uri.replace("registry?", "registry/usage/2026-11-22/a.json?"))
    assert (beside.uri, name) == (below.uri, "a.json")
    assert beside.read_json(name) == {"here": True}


@pytest.mark.parametrize(
    ("path", "folder", "name"),
    [
        ("/data/log/", "/data", "log"),
        ("/a.json", "/", "a.json"),
        ("a.json", ".", "a.json"),
        ("b/why?.json", "b", "why?.json"),
    ],
)
def test_a_path_is_its_folder_and_its_name(path, folder, name):
    store, found = folder_and_name(path)
    assert (store.uri, found) == (folder, name)


@pytest.mark.parametrize("name", ["../etc", "a/b", "", "A", ".hidden", "x\x00y", "name@v1@v2"])
def test_names_that_are_no_names_never_become_paths(registry, name):
    with pytest.raises(RegistryError):
        registry.resolve(name)


def test_many_publishers_get_one_version_each(registry, tmp_path):
    folders = [adapter(tmp_path, f"content-{n}") for n in range(8)]
    threads = [
        threading.Thread(target=registry.publish, args=(folder, manifest())) for folder in folders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert registry.versions("reconcile") == list(range(1, 9))


def test_a_base_model_is_known_by_its_weights(tmp_path):
    for name, weights in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(weights)
    assert model_digest(tmp_path / "a") == model_digest(tmp_path / "b")
    assert model_digest(tmp_path / "a") != model_digest(tmp_path / "c")


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    store = Store(tmp_path)
    store.write_json("x.json", {"kept": True})
    with pytest.raises(TypeError):
        store.write_bytes("x.json", "not bytes")  # type: ignore[arg-type]
    assert store.read_json("x.json") == {"kept": True}
    assert store.names() == ["x.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_pins_are_a_set_of_versions_that_exist(three_versions):
    three_versions.pin("reconcile", 3)
    three_versions.pin("reconcile", 1)
    three_versions.pin("reconcile", 1)
    assert three_versions.pins("reconcile") == [1, 3]
    three_versions.pin("reconcile", 3, pinned=False)
    assert three_versions.pins("reconcile") == [1]
    with pytest.raises(RegistryError):
        three_versions.pin("reconcile", 9)


@pytest.fixture
def three_versions(registry, tmp_path):
    for content in ("one", "two", "three"):
        registry.publish(adapter(tmp_path, content), manifest())
    return registry


def test_of_two_promotes_at_once_one_wins_and_the_other_is_told(three_versions):
    three_versions.promote("reconcile", 1)
    together = threading.Barrier(2)
    told: list[str] = []

    def promote(version: int) -> int | None:
        together.wait()
        try:
            three_versions.promote("reconcile", version, by=f"who wants v{version}", seen=1)
        except RegistryError as error:
            told.append(str(error))
            return None
        return version

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(promote, (2, 3)))
    (winner,) = [version for version in results if version]
    assert three_versions.aliases("reconcile") == {"prod": winner}
    (sentence,) = told
    assert f"is at v{winner}, moved there by who wants v{winner} at " in sentence
    assert "and not at v1 as was thought" in sentence
    with pytest.raises(RegistryError, match="alias 'beta' points nowhere, and not at v1"):
        three_versions.promote("reconcile", 2, alias="beta", seen=1)
    assert "beta" not in three_versions.aliases("reconcile")


def test_a_split_is_kept_with_its_alias_and_ends_once(three_versions):
    three_versions.promote("reconcile", 1)
    begun = three_versions.start_split("reconcile", Split(version=2, weight=0.2))
    assert three_versions.splits("reconcile") == {"prod": begun}
    with pytest.raises(RegistryError, match="has a canary already, v2"):
        three_versions.start_split("reconcile", Split(version=3))
    three_versions.end_split(
        "reconcile", promote=True, expected=begun, by="gateway", figures={"n": 5}
    )
    assert three_versions.aliases("reconcile") == {"prod": 2}
    assert three_versions.splits("reconcile") == {}
    last = three_versions.history("reconcile", "prod")[-1]
    assert (last["action"], last["by"], last["figures"]) == ("promote", "gateway", {"n": 5})
    with pytest.raises(RegistryError, match="no canary"):
        three_versions.end_split("reconcile", promote=False)
    assert three_versions.rollback("reconcile") == 1


def test_a_canary_that_was_not_promoted_is_no_step_of_a_rollback(three_versions):
    three_versions.promote("reconcile", 1)
    three_versions.promote("reconcile", 2)
    three_versions.start_split("reconcile", Split(version=3))
    three_versions.end_split("reconcile", promote=False)
    assert three_versions.aliases("reconcile") == {"prod": 2}
    assert three_versions.rollback("reconcile") == 1


def test_somebody_who_promotes_ends_the_canary_and_the_gateway_is_told(three_versions):
    three_versions.promote("reconcile", 1)
    begun = three_versions.start_split("reconcile", Split(version=2))
    three_versions.promote("reconcile", 3)
    with pytest.raises(RegistryError):
        three_versions.end_split("reconcile", promote=True, expected=begun)
    assert three_versions.aliases("reconcile") == {"prod": 3}


def test_a_canary_leaves_the_version_it_is_compared_with_some_requests(three_versions):
    three_versions.promote("reconcile", 1)
    with pytest.raises(RegistryError, match=r"weight 1 of a canary .* below 1, or promote v2"):
        three_versions.start_split("reconcile", Split(version=2, weight=1))
    three_versions.start_split("reconcile", Split(version=2, mode="shadow", weight=1))


@pytest.mark.parametrize(("version", "why"), [(1, "is at v1 already"), (9, "not in")])
def test_a_split_needs_another_version_that_exists(three_versions, version, why):
    three_versions.promote("reconcile", 1)
    with pytest.raises(RegistryError, match=why):
        three_versions.start_split("reconcile", Split(version=version))
