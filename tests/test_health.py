"""/livez asks nothing but the process; /readyz says what a request would meet."""

from tests.conftest import settings_for
from tests.scenarios import Bff
from tests.servers import free_port


def with_urls(settings, *, database: str | None = None, redis: str | None = None):
    groups = {"database": database, "redis": redis}
    return settings.model_copy(
        update={
            name: type(getattr(settings, name)).model_validate({"url": url})
            for name, url in groups.items()
            if url is not None
        }
    )


async def probes(settings, sandbox) -> tuple[int, dict, int]:
    async with Bff.running(settings, sandbox) as bff:
        ready = await bff.http.get("/readyz")
        live = await bff.http.get("/livez")
        assert live.json() == {"status": "alive"}
        return ready.status_code, ready.json(), live.status_code


async def test_all_is_well(settings, sandbox):
    ready = {"status": "ready", "database": "ok", "sharedState": "ok", "clientCertificate": "ok"}
    assert await probes(settings, sandbox) == (200, ready, 200)
    assert sandbox.state.count() == 0


async def test_without_redis_the_service_is_degraded_but_takes_requests(settings, sandbox):
    settings = with_urls(settings, redis=f"redis://127.0.0.1:{free_port()}")
    degraded = {"status": "degraded", "database": "ok", "sharedState": "down", "clientCertificate": "ok"}
    assert await probes(settings, sandbox) == (200, degraded, 200)
    async with Bff.running(settings, sandbox) as bff:
        assert (await bff.result(await bff.completed())).status_code == 200
        assert (await bff.http.get("/readyz")).status_code == 200


async def test_without_its_database_the_service_lives_but_is_not_ready(settings, sandbox):
    settings = with_urls(settings, database=f"postgresql+asyncpg://bff:pa55word@127.0.0.1:{free_port()}/bff")
    not_ready = {"status": "not_ready", "database": "down", "sharedState": "ok", "clientCertificate": "ok"}
    assert await probes(settings, sandbox) == (503, not_ready, 200)


async def test_without_both_it_says_so(embedded, sandbox):
    settings = with_urls(
        settings_for(embedded, sandbox),
        database=f"postgresql+asyncpg://bff@127.0.0.1:{free_port()}/bff",
        redis=f"redis://127.0.0.1:{free_port()}",
    )
    not_ready = {"status": "not_ready", "database": "down", "sharedState": "down", "clientCertificate": "ok"}
    assert await probes(settings, sandbox) == (503, not_ready, 200)


async def test_a_database_without_tables_is_outdated(embedded, sandbox, tmp_path):
    settings = with_urls(settings_for(embedded, sandbox), database=f"sqlite+aiosqlite:///{tmp_path}/new.db")
    outdated = {"status": "not_ready", "database": "outdated", "sharedState": "ok", "clientCertificate": "ok"}
    assert await probes(settings, sandbox) == (503, outdated, 200)
