"""Who goes next: every order there is, or one drawn by a seed.

`explore` tries every interleaving of a scenario, with a limited number of kills at every
possible place.  Two orders that lead to the same state (the same files, locks and time,
and processes that have seen the same) have the same future, so each state is left in
each direction once.  `draw` plays one random history, with kills, pauses and failing
calls; the same seed gives the same history, step by step.
"""

from __future__ import annotations

import errno
import random

from greenlet import getcurrent

ERRORS = (errno.EIO, errno.ENOSPC, errno.EMFILE, errno.EACCES, errno.EDQUOT)
NEVER_FAIL = ("factory", "sleep", "wait", "close", "unlock", "thread lock")


class Stuck(Exception):
    """A history in which somebody neither returns nor raises."""


class Run:
    """One history in the making."""

    def __init__(self, scenario, recording=False):
        self.scenario = scenario
        self.world = scenario.set_up()
        self.world.hub = getcurrent()
        self.world.failures_made = 0
        self.lines = [] if recording else None
        self.steps = []

    def choices(self, kills):
        """Return what can happen next; nothing, when all is quiet."""
        world = self.world
        ready = []
        asleep = None
        for process in world.processes:
            if process.ready():
                ready.append(process)
            elif process.asleep() and (asleep is None or process.wakes < asleep.wakes):
                asleep = process
        found = [("go", p) for p in ready]
        if asleep is not None and not (ready and self.scenario.prompt):
            found.append(("tick", asleep))
        if kills:
            found += [("kill", p) for p in ready if p.pending != "start"]
        if not found:
            found = [("resume", p) for p in world.processes if p.alive and p.paused]
        if not found and any(p.alive and not p.done for p in world.processes):
            raise Stuck("nobody can go on")
        return found

    def do(self, action, process):
        world = self.world
        self.steps.append(action)
        if self.lines is not None:
            self.lines.append((world.now, process.name, action, process.pending, process.argument))
        if action == "go":
            process.greenlet.switch()
        elif action in ("tick", "early tick"):
            world.advance(process.wakes)
        elif action == "kill":
            world.kills += 1
            world.kill(process)
        elif action == "pause":
            world.pauses += 1
            process.paused = True
        elif action == "resume":
            process.paused = False
        else:
            process.fault = action
            world.failures_made += 1
            process.greenlet.switch()

    def finish(self):
        """Check the history and take the world down."""
        try:
            return self.scenario.check(self.world)
        finally:
            self.world.bury()

    def told(self):
        """Return the history for people to read."""
        short = self.scenario_names()
        lines = []
        for now, name, action, pending, argument in self.lines:
            what = f"{pending} {short(argument)}".strip()
            if action != "go":
                number = isinstance(action, int)
                what = f"{what} fails: {errno.errorcode[action]}" if number else f"{action}s"
                if action in ("tick", "early tick"):
                    what = "(the clock moves on)"
                elif action == "kill":
                    what = f"is killed before: {pending} {short(argument)}"
            lines.append(f"{now:9.3f} {name:9} {what}")
        return "\n".join(lines)

    @staticmethod
    def scenario_names():
        from .scenario import SHARD_ENTRIES

        def short(argument):
            text = str(argument)
            for name in SHARD_ENTRIES.values():
                text = text.replace(f"/cache/v1/{name[:2]}/{name}", "data")
            return text

        return short


class Found(Exception):
    """A history that breaks a promise; told as a story when it is shown."""

    def __init__(self, scenario, faults, choices):
        super().__init__(faults)
        self.scenario = scenario
        self.faults = faults
        self.choices = choices

    def __str__(self):
        return f"{'; '.join(self.faults)}\n{replay(self.scenario, self.choices)[1]}"


def replay(scenario, choices, recording=True):
    """Play the history that a list of choices stands for; return its faults and story."""
    run = Run(scenario, recording)
    kills = sum(1 for action, _ in choices if action == "kill")
    try:
        for action, place in choices:
            run.choices(kills)
            run.do(action, run.world.processes[place])
        faults = list(run.world.faults)
        if not any(p.alive and not p.done for p in run.world.processes):
            faults = run.scenario.check(run.world)
        return faults, run.told() if recording else ""
    finally:
        run.world.bury()


def explore(scenario, kills=0, most_steps=400, most_runs=None, early_ticks=2, collect=None):
    """Try every order; return how many histories and states there were.

    Parameters
    ----------
    kills
        How many processes may be killed in one history, anywhere.
    collect
        A list to which histories that break a promise are added, instead of raising the
        first one.
    early_ticks
        How often in one history the clock may move although somebody could go on: a
        process that is slow, not dead.

    Raises
    ------
    Found
        For the first history that breaks a promise.
    """
    seen = set()
    todo = [()]
    runs = 0
    while todo:
        if most_runs is not None and runs >= most_runs:
            break
        prefix = todo.pop()
        runs += 1
        try:
            _explore_one(scenario, prefix, kills, most_steps, early_ticks, seen, todo)
        except Found as found:
            if collect is None:
                raise
            collect.append(found)
    return runs, len(seen), not todo


def _explore_one(scenario, prefix, kills, most_steps, early_ticks, seen, todo):
    run = Run(scenario)
    world = run.world
    done = []
    ticks = early_ticks
    try:
        for step in range(most_steps):
            if step < len(prefix):
                choice = prefix[step]
            else:
                try:
                    found = run.choices(kills)
                except Stuck as why:
                    raise Found(scenario, [str(why)], done) from None
                if not found:
                    break
                if found[0][0] == "go":
                    found = [
                        ("early tick" if action == "tick" else action, p)
                        for action, p in found
                        if ticks or action != "tick"
                    ]
                state = hash((world.state(), kills, ticks))
                if state in seen:
                    return
                seen.add(state)
                options = [(action, world.processes.index(p)) for action, p in found]
                choice = options[0]
                todo.extend((*done, option) for option in options[1:])
            done.append(choice)
            action, place = choice
            if action == "early tick":
                ticks -= 1
            elif action == "kill":
                kills -= 1
            run.do(action, world.processes[place])
            if world.faults:
                raise Found(scenario, list(world.faults), done)
        else:
            raise Found(scenario, ["it does not come to an end"], done)
        faults = scenario.check(world)
        if faults:
            raise Found(scenario, faults, done)
    finally:
        world.bury()


def draw(scenario, seed, kills=1, pauses=1, failures=0, most_steps=4000, recording=False):
    """Play one history drawn by a seed; return its faults (none is good) and its run."""
    dice = random.Random(seed)
    run = Run(scenario, recording)
    world = run.world
    chance = dice.random
    sticky = dice.choice((0.0, 0.5, 0.8, 0.95))  # how often the same one goes on
    last = None
    faults = []
    allowed = {"kill": kills, "pause": pauses, "fail": failures}
    try:
        for _ in range(most_steps):
            try:
                found = run.choices(False)
            except Stuck as why:
                faults = [str(why)]
                break
            if not found:
                break
            trouble = _trouble(world, found, dice, allowed)
            if trouble is not None:
                run.do(*trouble)
                continue
            choice = None
            if last is not None and chance() < sticky:
                choice = next((each for each in found if each[1] is last), None)
            if choice is None:
                choice = found[int(chance() * len(found))]
            last = choice[1]
            run.do(*choice)
        else:
            faults = ["it does not come to an end"]
        faults = faults or run.scenario.check(world)
        return faults or list(world.faults), run
    finally:
        world.bury()


def _trouble(world, found, dice, allowed):
    """Return a kill, a pause, its end or a failing call, every now and then."""
    luck = dice.random()
    if luck > 0.03:
        return None
    paused = [p for p in world.processes if p.paused and p.alive]
    if paused and luck < 0.01:
        return "resume", dice.choice(paused)
    ready = [p for action, p in found if action == "go" and p.pending != "start"]
    if not ready:
        return None
    victim = dice.choice(ready)
    kind = "kill" if luck < 0.02 else "pause" if luck < 0.025 else "fail"
    if not allowed[kind] or (kind == "fail" and victim.pending in NEVER_FAIL):
        return None
    allowed[kind] -= 1
    return (dice.choice(ERRORS) if kind == "fail" else kind), victim


def hunt(scenario, kills=0, pauses=0, most=20_000, enough=3):
    """Look for histories that break a promise; return the shortest found and how many tried.

    With pauses, histories are drawn by the seeds 0, 1, 2, ...; without, all orders are
    tried one after another.
    """
    found = []
    if not pauses:
        tried, _, _ = explore(scenario, kills, 3000, min(most, 1500), collect=found)
    else:
        for tried in range(1, most + 1):
            faults, run = draw(scenario, tried, kills, pauses)
            if faults:
                found.append(Drawn(scenario, faults, run, tried, kills, pauses))
                if len(found) == enough:
                    break
    return min(found, key=lambda each: len(each.choices), default=None), tried


class Drawn(Found):
    """A history that breaks a promise, told by its seed."""

    def __init__(self, scenario, faults, run, seed, kills, pauses):
        super().__init__(scenario, faults, run.steps)
        self.drawn = (seed, kills, pauses)

    def __str__(self):
        seed, kills, pauses = self.drawn
        _, run = draw(self.scenario, seed, kills, pauses, recording=True)
        return f"{'; '.join(self.faults)}\nseed {seed}\n{run.told()}"
