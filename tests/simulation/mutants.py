"""Planted faults: the protocol with one thing wrong, each of which the lab must catch.

Each mutant is a function that breaks the library through pytest's `monkeypatch`, with the
scenario in which it is to be found.  Those that need a process that is paused for long are
looked for in random histories (`pauses`), the others in all orders that there are.
"""

from __future__ import annotations

import atomcache._claim as claim_module
import atomcache._protocol as protocol_module
import atomcache._value as value_module
from atomcache import _path
from atomcache._claim import Claim, claim_path
from atomcache._door import CREATE
from atomcache._protocol import Protocol
from atomcache._record import Record

from .scenario import Scenario

MUTANTS = {}


def mutant(scenario, **search):
    def register(function):
        MUTANTS[function.__name__] = (function, scenario, search)
        return function

    return register


TWO = Scenario(("get", "get"))
THREE = Scenario(("get", "get", "get"))
NFS_PROMPT = Scenario(("get", "get"), "nfs", 2, prompt=True)
NFS = Scenario(("get", "get"), "nfs", 2)


@mutant(TWO, pauses=1, enough=1)
def no_inode_check(patch):
    """Take a name for the file that was opened if only there is something by that name."""

    def leads_to(door, path, found):
        try:
            door.lstat(path)
        except FileNotFoundError:
            return False
        return True

    patch.setattr(claim_module, "leads_to", leads_to)
    patch.setattr(protocol_module, "leads_to", leads_to)


@mutant(TWO)
def no_look_under_the_claim(patch):
    """Build at once when the claim is had, without looking again."""
    build = Protocol._build

    def build_blindly(self, entry, *rest):
        entry.identity = lambda: None
        return build(self, entry, *rest)

    patch.setattr(Protocol, "_build", build_blindly)


@mutant(THREE, kills=1, pauses=1)
def reap_without_lock(patch):
    """Remove a claim that looked abandoned without taking its lock first."""
    reap, try_lock = claim_module.reap, claim_module._try_lock

    def reap_boldly(door, path, seen, *, silent):
        door.me().reaping = True
        try:
            return reap(door, path, seen, silent=silent)
        finally:
            door.me().reaping = False

    patch.setattr(protocol_module, "reap", reap_boldly)
    patch.setattr(
        claim_module,
        "_try_lock",
        lambda door, fd: getattr(door.me(), "reaping", False) or try_lock(door, fd),
    )


@mutant(THREE, kills=1, pauses=1)
def scratch_reused(patch):
    """Give every builder's scratch the same name."""
    init = Claim.__init__

    def make(self, door, path, *args):
        init(self, door, path, *args)
        self.token = "00"
        self.scratch = f"{path}.00"

    patch.setattr(Claim, "__init__", make)


@mutant(TWO)
def claim_removed_before_publish(patch):
    """Let others in when the factory is done, before its result can be seen."""
    publish = value_module.ValueEntry.publish

    def late(self, *made):
        self.door.unlink(claim_path(self.path))
        return publish(self, *made)

    patch.setattr(value_module.ValueEntry, "publish", late)


@mutant(NFS_PROMPT)
def newborn_grace_dropped(patch):
    """Take an unsigned claim for an abandoned one at once."""
    patch.setattr(protocol_module, "NEWBORN_GRACE", 0.0)


@mutant(NFS, pauses=1)
def replace_instead_of_first_wins(patch):
    """Publish over whatever is there."""
    install = value_module.install_file
    patch.setattr(
        value_module,
        "install_file",
        lambda door, scratch, path, seen, always=False: install(
            door, scratch, path, seen, always=True
        ),
    )


@mutant(Scenario(("refresh", "refresh"), "nfs", 2), pauses=1)
def expired_entry_replaced_unseen(patch):
    """Replace an entry without asking whether it is still the one found expired."""
    install = value_module.install_file
    patch.setattr(
        value_module,
        "install_file",
        lambda door, scratch, path, seen, always=False: install(
            door, scratch, path, seen, always=seen is not None
        ),
    )


@mutant(Scenario(("get_slow", "get_slow"), "nfs", 2, prompt=True))
def no_heartbeat(patch):
    """Never touch the claim."""
    sign = Claim.sign

    def silent(self, *said, **more):
        sign(self, *said, **more)
        self.door.stop_heartbeat(self.fd)

    patch.setattr(Claim, "sign", silent)


@mutant(NFS_PROMPT)
def clocks_of_two_machines_compared(patch):
    """Judge a heartbeat's age by the claim's time and the reader's clock."""
    patch.setattr(
        protocol_module.Patience,
        "unchanged",
        lambda self, found: self._door.time() - found.st_mtime,
    )


@mutant(NFS_PROMPT)
def any_free_lock_is_proof(patch):
    """Trust a free lock, whoever the owner is."""
    patch.setattr(Record, "lock_is_proof", lambda self, door, found: True)


@mutant(TWO)
def lock_never_let_go(patch):
    """Forget to unlock and close the claim when the build is done."""
    patch.setattr(Claim, "_let_go", lambda self: setattr(self, "released", True))


@mutant(Scenario(("get_path", "get_path")), pauses=1, enough=1)
def path_built_in_place(patch):
    """Let the builder work where readers look, instead of in a scratch."""
    build = _path.PathEntry.build

    def in_place(self, scratch):
        meta = f"{self.path}/.atomcache"
        self.door.mkdir(self.path)
        self.door.close(self.door.open(meta, CREATE))
        self.door.utime(meta, (0, 0))  # as of an entry that never expires
        build(self, self.path)
        self.door.unlink(meta)
        self.door.remove_tree(scratch)
        self.door.rename(self.path, scratch)
        return f"{scratch}/{self.name}"

    patch.setattr(_path.PathEntry, "build", in_place)


@mutant(TWO, kills=1)
def dead_owners_scratch_forgotten(patch):
    """Reap a dead owner's claim, and leave its scratch for ever."""
    patch.setattr(claim_module, "discard", lambda door, path: None)
    from atomcache import _listing

    patch.setattr(_listing, "_remove_orphan", lambda door, path: False)


REMOVED = Scenario(("get", "remove"))
FOLDER_REMOVED = Scenario(("get_folder", "remove"))


@mutant(REMOVED)
def publish_what_was_removed(patch):
    """Publish without looking whether somebody removed the entry meanwhile."""
    patch.setattr(Claim, "revoked", lambda self, *tags: False)


@mutant(FOLDER_REMOVED)
def leave_what_stands_ready(patch):
    """Tell the owner that the entry was removed, and leave what it is about to publish."""
    patch.setattr(claim_module, "_take_away", lambda step, *names: None)
