"""The service with a login-unlink handler that says in the log that it has been called; run as a process."""

import asyncio
from contextlib import asynccontextmanager

import structlog
import uvicorn

from app.callbacks.inbox import unlinking
from app.callbacks.tables import CallbackName
from app.main import create_app
from app.observability import configure_logging
from app.settings import Settings


async def unlink(_user_key: int, referrer: str) -> str:
    structlog.stdlib.get_logger("handler").info("unlinked", referrer=referrer)
    return "ENDED"


def main() -> None:
    settings = Settings.from_environment()
    configure_logging(level=settings.logging.level, is_json=True)
    application = create_app(settings)
    lifespan = application.router.lifespan_context

    @asynccontextmanager
    async def with_handler(app):
        async with lifespan(app) as state:
            app.state.resources.inbox._handlers[CallbackName.LOGIN_UNLINK] = unlinking(unlink)
            yield state

    application.router.lifespan_context = with_handler
    config = uvicorn.Config(application, port=settings.server.port, log_config=None, access_log=False)
    asyncio.run(uvicorn.Server(config).serve())


main()
