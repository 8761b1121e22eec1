"""What proxies cost, through the real ones in front of a real server."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.chart import tool
from helpers.nginx import needs_nginx
from helpers.pretended import needs_openssl
from helpers.support import small_model

from ipt_triton.benchmarks.errors import BenchmarkError
from ipt_triton.benchmarks.record import Record
from ipt_triton.benchmarks.serving import proxies
from ipt_triton.train.model.checkpoint import save_checkpoint


@pytest.mark.slow
@pytest.mark.server
@needs_nginx
@needs_openssl
def test_the_same_load_goes_direct_and_through_both_proxies(tmp_path: Path) -> None:
    tool("envoy")
    save_checkpoint(small_model(), tmp_path / "small", provenance={})
    path = tmp_path / "proxies.json"
    words = ["--checkpoint", tmp_path / "small", "--sizes", "48x48", "60x100", "--rounds", 2, "--seconds", 0.2]
    assert proxies.main(list(map(str, [*words, "--concurrency", 2, "--json", path]))) == 0
    record = Record.load(path)
    assert [row["size"] for row in record.figures["sizes"]] == [[48, 48], [60, 100]]
    for row in record.figures["sizes"]:
        assert set(row["photos_per_s"]) == set(row["latency_ms"]) == set(proxies.WAYS)
        for name, ratio in row["of_direct"].items():
            assert ratio["runs"] == 2 and 0 < ratio["low"] <= ratio["median"], name
    assert "Envoy 1." in proxies.markdown(record) and "TLS and a key" in proxies.markdown(record)
    assert [len(axes.patches) for axes in proxies.draw(record).axes] == [2, 2]


def test_a_place_that_a_configuration_does_not_have_is_named() -> None:
    assert proxies.changed("listen 8080;", {"8080": "1234"}) == "listen 1234;"
    with pytest.raises(BenchmarkError, match="has no 'listen 8443' any more"):
        proxies.changed("listen 8080;", {"listen 8443": ""})
