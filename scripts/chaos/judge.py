"""Whether what a client saw follows from what was done to the upstreams: the oracle of scripts/check-chaos.

For every error it collects what each upstream can have done to that request, by the request's id and by the clock, and
asks whether the rules of retries allow to tell the client of it: an error that may be retried is only allowed when as
many upstreams failed the request as there are tries. What is not explained so is a violation.

It must not know how the gateway works: the classes of errors and the rules are those of its documentation.
"""

import bisect
import collections
import re

# Slack for what is measured in two processes, in seconds.
SLACK = 0.005
# How much earlier a probe may come by the times of the log, in seconds.
SHORT = 0.1
# What the configuration says as timeouts.connect, in seconds.
CONNECT = 0.5
# By `error` of Proxy-Status: what class it can be. The detail of the problem document tells two of them apart, but an
# answer to HEAD has none.
CLASSES = {
    "connection_refused": {"connect"},
    "connection_timeout": {"connect"},
    "connection_terminated": {"unsent", "closed"},
    "http_response_incomplete": {"invalid"},
    "http_protocol_error": {"invalid"},
    "http_response_header_section_size": {"invalid"},
    "http_response_timeout": {"timeout"},
    "destination_unavailable": {"rejected"},
}
DETAILS = {b"before it had the request": "unsent", b"without an answer": "closed"}
UNSENT = {"connect", "tls", "unsent"}
IDEMPOTENT = {"GET", "HEAD", "PUT"}
LAST_WORDS = {"answer", "close", "reset", "head", "cut", "gone"}
REASONS = [
    ("closed", "open", r" after \d+ failures? in a row, last: (?!unknown).+; next probe in [\d.]+ m?s"),
    ("half-open", "open", r" because the probe failed: (?!unknown).+; next probe in [\d.]+ m?s"),
    ("open", "half-open", r" after the cooldown; one probe is out"),
    ("half-open", "half-open", r" because the probe did not end in time; another one is out"),
    ("half-open", "closed", r" because the probe succeeded"),
]


def classes(answer):
    """What went wrong, as the gateway says it."""
    found = re.search(r"error=(\w+)", answer.fields.get("proxy-status", ""))
    token = found.group(1) if found else ""
    for words, name in DETAILS.items():
        if token == "connection_terminated" and words in answer.body:
            return {name}
    return CLASSES.get(token, {token or "unknown"})


class Policy:
    """The settings of retries under which a request was sent."""

    def __init__(self, attempts, on, timeout):
        self.tries, self.on, self.timeout = attempts + 1, on, timeout

    def retries(self, name, method):
        return name in self.on and (name in UNSENT or method in IDEMPOTENT)


class Request:
    """What a client sent and what it saw. `seen` is one word for it, `answer` is kept unless all is well."""

    __slots__ = ("id", "phase", "method", "path", "begun", "ended", "seen", "upstream", "answer", "classes")

    def describe(self):
        when = f"{self.begun:.3f} to {self.ended:.3f}"
        return f"{self.id} {self.method} {self.path}, {when}: {self.seen}; {self.answer or f'by {self.upstream}'}"


class Fault:
    """What was done to an upstream, and when: from before it began until after it had ended for certain."""

    def __init__(self, upstream, kind, begun, detail=""):
        self.upstream, self.kind, self.begun, self.ended, self.detail = upstream, kind, begun, float("inf"), detail

    def overlap(self, begun, ended):
        return min(self.ended, ended) - max(self.begun, begun)

    def __str__(self):
        return f"{self.upstream} {self.kind} {self.detail} {self.begun:.3f} to {self.ended:.3f}"


class Judge:
    def __init__(self, requests, faults, upstreams, policies, transitions, service):
        self.requests, self.faults, self.policies = requests, faults, policies
        self.upstreams = {one.name: one.url for one in upstreams}
        self.violations, self.exceptions, self.explained = [], collections.Counter(), collections.Counter()
        self.events = collections.defaultdict(list)
        self.drops, self.stalls = collections.defaultdict(list), collections.defaultdict(list)
        for upstream in upstreams:
            for at, words in upstream.events():
                if words[0] == "drop":
                    self.drops[upstream.name].append(at)
                elif words[0] == "stall":
                    self.stalls[upstream.name].append((at - float(words[1]), at))
                elif words[0] != "start":
                    self.events[words[1]].append((at, upstream.name, words[0], words[4:]))
        self.moves = collections.defaultdict(list)
        for at, name, url, _, to, _ in transitions:
            if name == service:
                self.moves[url].append((at, to))

    def violation(self, what, request):
        self.violations.append((what, request))

    def judge(self):
        for request in self.requests:
            self.events[request.id].sort(key=lambda event: event[0])
            self.judge_duplicates(request)
            if request.seen == "ok":
                self.judge_success(request)
            elif request.seen == "cut":
                self.judge_cut(request)
            elif request.seen == "error":
                self.judge_error(request)
            else:
                self.violation(f"a client saw {request.seen}", request)

    def judge_success(self, request):
        answered = [event for event in self.events[request.id] if event[1:] == (request.upstream, "answer", ["200"])]
        if not answered:
            self.violation("an answer that its upstream has not given", request)

    def judge_duplicates(self, request):
        """Nothing is asked more often than the rules allow."""
        policy = self.policies[request.phase]
        got = [event for event in self.events[request.id] if event[2] == "got"]
        if request.method not in IDEMPOTENT and len(got) > 1:
            return self.violation("a request that is not idempotent reached upstreams more than once", request)
        if len({event[1] for event in got}) > policy.tries:
            return self.violation("more upstreams were asked than there are tries", request)
        # What an upstream answered is passed on, unless its class is to be retried or the answer never left.
        for position, (at, name, event, more) in enumerate(self.events[request.id]):
            status = "5xx" if more and more[0] >= "500" else "fine"
            word = {"answer": status, "head": "invalid", "cut": "fine"}.get(event)
            if word is None or policy.retries(word, request.method) or at > request.ended:
                continue
            again = [later for later in self.events[request.id][position + 1 :] if later[2] == "got"]
            again = [later for later in again if not self.reads_late(later[1], request, later[0])]
            if again and not self.undelivered(name, at, request, policy):
                self.violation(f"asked again after an upstream's last word ({name}: {event} {' '.join(more)})", request)
                return
        # A try that was waited for in vain is over after the timeout, and then another begins, or does not.
        if not policy.retries("timeout", request.method):
            for at, name, _, _ in got:
                late = [one for one in got if one[0] > at + 0.9 * policy.timeout and one[0] < request.ended]
                late = [one for one in late if one[1] != name and not self.reads_late(one[1], request, one[0])]
                if late and not self.ended_early(name, at, late[0][0], request, policy):
                    return self.violation(f"asked again after a timeout of {name}", request)

    def ended_early(self, name, at, following, request, policy):
        """Whether a try ended otherwise than by its timeout: by the upstream, before that and before the next try."""
        ends = [end for end, who, event, _ in self.events[request.id] if who == name and event in LAST_WORDS - {"gone"}]
        killed = any(fault.kind == "kill" for fault in self.faults_of(name, request))
        latest = min(following, at + 0.99 * policy.timeout)
        return killed or any(at <= end <= latest for end in ends)

    def reads_late(self, name, request, at):
        """An upstream that did not run for a while may have read what it had got before."""
        frozen = any(fault.kind in ("stop", "queue") for fault in self.faults_of(name, request))
        return frozen or any(begun < at and ended > request.begun for begun, ended in self.stalls[name])

    def undelivered(self, name, at, request, policy):
        """An answer may never have reached the gateway, or too late."""
        late = any(got[1:3] == (name, "got") and at - got[0] > 0.8 * policy.timeout for got in self.events[request.id])
        harmed = (fault for fault in self.faults_of(name, request) if fault.kind in ("kill", "stop", "queue"))
        return late or any(fault.ended > at - policy.timeout for fault in harmed)

    def faults_of(self, name, request):
        mine = (fault for fault in self.faults if fault.upstream == name)
        return [fault for fault in mine if fault.overlap(request.begun, request.ended) > 0]

    def judge_cut(self, request):
        name = request.upstream
        met = self.met(name, request)
        if "cut" in met:
            self.explained[(request.phase, request.method, "body cut", met["cut"])] += 1
        else:
            self.violation("a body was cut short that its upstream sent whole", request)

    def judge_error(self, request):
        policy, method = self.policies[request.phase], request.method
        met = {name: self.met(name, request) for name in self.upstreams}
        if request.upstream:
            # Passed on: only that upstream can have said it.
            said = met[request.upstream].get("5xx", "")
            if said != f"answered {request.answer.status}":
                return self.violation("an error status that its upstream has not given", request)
        hit = {name: found for name, found in met.items() if request.classes & found.keys()}
        final = {name for name in request.classes if any(name in found for found in hit.values())}
        for name in sorted(final):
            if not policy.retries(name, method):
                why = next(found[name] for found in hit.values() if name in found)
                self.explained[(request.phase, method, name, why)] += 1
                return
        failed = [name for name, found in met.items() if any(policy.retries(one, method) for one in found)]
        if final and len(failed) >= policy.tries:
            self.explained[(request.phase, method, "/".join(sorted(final)), f"{len(failed)} upstreams failed it")] += 1
            return
        said = "/".join(sorted(request.classes))
        if self.starved(request, policy):
            self.exceptions[(request.phase, f"{said}: a healthy upstream had no processor for too long")] += 1
        elif not self.guardians(request):
            self.exceptions[(request.phase, f"{said}: no healthy upstream with a closed breaker at that moment")] += 1
        elif not final:
            self.violation(f"{said}: nothing that an upstream did explains it", request)
        else:
            self.violation(f"{said}: {len(failed)} upstreams failed it, there are {policy.tries} tries", request)

    def met(self, name, request):
        """What an upstream can have done to a request: classes, with a reason for each."""
        policy, found = self.policies[request.phase], {}
        mine = [event for event in self.events[request.id] if event[1] == name]
        got = [at for at, _, event, _ in mine if event == "got"]
        for at, _, event, more in mine:
            if event in ("close", "reset"):
                found["closed"] = "answered by " + {"close": "the end of the connection", "reset": "a reset"}[event]
            elif event == "head":
                found["invalid"] = "ended inside the head"
            elif event == "cut":
                found["cut"] = "ended inside the body"
            elif event == "answer" and more[0] >= "500":
                found["5xx"] = f"answered {more[0]}"
            if event in LAST_WORDS and got and at - got[0] > 0.8 * policy.timeout:
                found["timeout"] = "slow"
        answered = [at for at, _, event, _ in mine if event in LAST_WORDS]
        for fault in self.faults_of(name, request):
            if fault.kind == "kill":
                if not got:
                    found |= dict.fromkeys(("connect", "unsent", "closed"), "killed")
                elif not answered:
                    found["closed"] = "killed with the request"
                    # The log of an upstream that is killed has no word of the answer that it still owed.
                    if fault.begun - got[0] > 0.8 * policy.timeout:
                        found["timeout"] = "slow until it was killed"
                elif answered[-1] < fault.begun + 1.0:
                    found |= dict.fromkeys(("closed", "invalid", "cut"), "killed while it answered")
            if fault.kind in ("stop", "queue"):
                overlap = fault.overlap(request.begun, request.ended)
                # What a full queue did not take is sent again late, also when the queue has room by then.
                if fault.kind == "queue" and not got:
                    overlap = request.ended - max(request.begun, fault.begun)
                    if overlap > 0.8 * CONNECT:
                        found["connect"] = "frozen with a full queue"
                if overlap > 0.8 * policy.timeout:
                    if not answered or answered[0] > fault.begun:
                        found["timeout"] = "frozen"
                    else:
                        found["cut"] = "frozen while it answered"
        drops = self.drops[name]
        at = bisect.bisect_left(drops, request.begun - SLACK)
        if not got and at < len(drops) and drops[at] <= request.ended + SLACK:
            found |= dict.fromkeys(("closed", "unsent"), "its idle connections were closed")
        return found

    def starved(self, request, policy):
        """An upstream that was not harmed did not run: the machine's fault. Excuses what is judged by time."""
        if not request.classes & {"timeout", "connect"}:
            return False
        for name, stalls in self.stalls.items():
            for begun, ended in stalls:
                took = min(ended, request.ended) - max(begun, request.begun)
                frozen = (fault for fault in self.faults if fault.upstream == name and fault.kind in ("stop", "queue"))
                if took > 0.3 * policy.timeout and not any(fault.overlap(begun, ended) > -0.1 for fault in frozen):
                    return True
        return False

    def guardians(self, request):
        """Upstreams that were healthy, with a closed breaker, all the time that a request took."""
        return [
            name
            for name, url in self.upstreams.items()
            if not self.faults_of(name, request) and self.closed_from(url, request.begun - 0.05, request.ended)
        ]

    def closed_from(self, url, begun, ended):
        state = "closed"
        for at, to in self.moves[url]:
            if at > ended:
                break
            if at >= begun and to != "closed":
                return False
            state = to if at < begun else state
        return state == "closed"

    def explain(self, what, request, lines):
        """All that is known about a violation."""
        yield f"{what}\n    {request.describe()}"
        for at, name, event, more in self.events[request.id]:
            yield f"    {at:.3f} {name}: {event} {' '.join(more)}"
        for fault in self.faults:
            if fault.overlap(request.begun - 0.2, request.ended + 0.2) > 0:
                yield f"    fault: {fault}"
        for at, text in lines:
            if request.begun - 0.3 < at < request.ended + 0.3:
                yield f"    {at:.3f} gateway: {text}"


def judge_transitions(transitions, threshold, cooldowns, slow):
    """Each has its reason, they follow each other, and none probes before its cooldown is over. `cooldowns` are the
    words that the log may have for one, with seconds. The log's times are those of its writing: in the spans that are
    `slow` it is late. What is wrong; how many cooldowns cannot be judged for that; the last state of each upstream."""
    wrong, last, opened, late = [], {}, {}, 0
    for at, service, url, before, after, reason in transitions:
        where = f"{service} {url}: {before} → {after}{reason}"
        if not any((before, after) == known[:2] and re.fullmatch(known[2], reason) for known in REASONS):
            wrong.append(f"no reason, or one that does not belong there: {where}")
        if before != last.get((service, url), "closed"):
            wrong.append(f"it was {last.get((service, url), 'closed')} before: {where}")
        if (before, after) == ("closed", "open") and f" after {threshold} failures in a row" not in reason:
            wrong.append(f"not after {threshold} failures: {where}")
        if after == "open":
            word = reason.rpartition("next probe in ")[2]
            if word not in cooldowns:
                wrong.append(f"a cooldown that was not configured: {where}")
            opened[(service, url)] = at, at + cooldowns.get(word, 0)
        begun, due = opened.get((service, url), (0, 0))
        if (before, after) == ("open", "half-open") and at < due - SHORT:
            # Had it been told of in time, it would have been so much earlier.
            if any(since < begun and until > begun - (due - at) for since, until in slow):
                late += 1
            else:
                wrong.append(f"opened at {begun:.3f} until {due:.3f} and probed at {at:.3f}: {where}")
        last[(service, url)] = after
    return wrong, late, last
