"""Where this instance's listening sockets come from: its programs open them (LISTEN=bind), or a holder lends them."""

from uuid import UUID

from lyttle_ops.ports.client import HeldPorts
from lyttle_ops.ports.protocol import listeners
from lyttle_ops.settings import Settings


class Listeners:
    """The sockets that NGINX and the API inherit; there are none with LISTEN=bind. Thread-safe."""

    def __init__(self, settings: Settings, instance_id: UUID) -> None:
        self._settings = settings
        name = str(instance_id)[:8] + (f" (task {settings.task_id})" if settings.task_id else "")
        self._held = HeldPorts(settings.ports_socket, listeners(settings), name) if settings.listen == "held" else None

    @property
    def are_held(self) -> bool:
        """Whether nothing may be bound here: LISTEN=held."""
        return self._held is not None

    def take(self) -> None:
        """Have the sockets from now on. Raises PortsUnavailable after half a minute without a holder that has them."""
        if self._held is not None:
            self._held.take()

    def for_nginx(self) -> tuple[int, ...]:
        """File descriptors; empty before `take`, after `release` and with LISTEN=bind."""
        return self._of(*self._settings.http_listen, *self._settings.https_listen)

    def for_api(self) -> tuple[int, ...]:
        return self._of(self._settings.api_listen)

    def release(self) -> None:
        """Give the sockets back for good, so that clients are refused unless another task has them too."""
        if self._held is not None:
            self._held.release()

    def _of(self, *addresses: str) -> tuple[int, ...]:
        return self._held.descriptors(addresses) if self._held is not None else ()
