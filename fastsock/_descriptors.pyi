from fastsock._main_greenlet import MainScheduler
from fastsock._visitors import Copy

class Slot:
    @property
    def hub(self) -> Descriptors: ...
    def release(self) -> None: ...

class Descriptors(MainScheduler):
    def wait_for_descriptor(
        self,
        descriptor: int,
        read: bool,
        write: bool,
        seconds: float | None,
        copy: Copy | None = None,
    ) -> bool: ...
    def wait_in_main(
        self,
        descriptor: int,
        read: bool,
        write: bool,
        seconds: float | None,
        copy: Copy | None = None,
    ) -> bool: ...
    def keep(self, descriptor: int) -> Slot | None: ...
    def wait_at(self, slot: Slot, read: bool, write: bool, seconds: float | None) -> bool: ...
    def forget_descriptor(self, descriptor: int) -> None: ...
    @property
    def foreign_waits(self) -> int: ...
