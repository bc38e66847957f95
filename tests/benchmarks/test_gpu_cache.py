"""What was compiled on one machine is found by Triton and by engines on the next one."""

import json
from pathlib import Path

import triton
from triton.runtime.cache import FileCacheManager

from bench.gpu.cache import pack, unpack


def test_a_binary_and_its_verdict_are_there_on_the_next_machine(tmp_path, monkeypatch):
    here, there, kept = tmp_path / "here", tmp_path / "there", tmp_path / "verdicts" / "a device"
    monkeypatch.setattr(triton.knobs.cache, "dir", str(here))
    cache = FileCacheManager("key")
    parts = {
        name: cache.put(content, name)
        for name, content in (("k.cubin", b"\x7fELF"), ("k.ptx", ".version"), ("k.json", "{}"))
    }
    cache.put_group("k.json", parts)
    kept.mkdir(parents=True)
    (kept / "one.json").write_text("true")

    assert pack(tmp_path / "out" / "cache.tar.xz", here, tmp_path / "verdicts") == 1
    assert unpack(tmp_path / "out" / "cache.tar.xz", there, tmp_path / "elsewhere") == 1
    monkeypatch.setattr(triton.knobs.cache, "dir", str(there))
    group = FileCacheManager("key").get_group("k.json")
    assert group == {name: str(there / FileCacheManager("key").cache_dir / name) for name in ("k.cubin", "k.json")}
    assert Path(group["k.cubin"]).read_bytes() == b"\x7fELF"
    assert json.loads((tmp_path / "elsewhere" / "a device" / "one.json").read_text()) is True
