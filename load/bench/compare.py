"""Several binaries in one run, interleaved: whether a change is faster, or which one was slower."""

import statistics

from measure import Samples, take
from operations import selected
from stage import Stage


def compare(options, binaries):
    """Measures the operations with each of the binaries, which are pairs of name and file, and prints how they compare with
    the first."""
    operations, samples, stages = selected(options.only), Samples(), {}
    try:
        for name, file in binaries:
            stages[name] = Stage(file)
        cases = [(operation, clients) for operation in operations for clients in operation.clients]
        for number in range(options.rounds):
            print(f"Round {number + 1} of {options.rounds}", flush=True)
            # To and fro, so that none always comes first.
            order = list(stages) if number % 2 == 0 else list(stages)[::-1]
            for operation, clients in cases:
                for name in order:
                    result = take(stages[name], operation, clients, options.seconds)
                    samples.note_all(f"{name}: {operation.name}, {clients} clients", result)
    finally:
        for stage in stages.values():
            stage.stop()
    names = list(stages)
    for operation, clients in cases:
        print(f"\n{operation.name}, {clients} clients")
        print(*lines(samples, names, f"{operation.name}, {clients} clients"), sep="\n")


def lines(samples, names, case):
    """What was measured of an operation, a line per binary."""
    base = samples[f"{names[0]}: {case}: per s"]
    for name in names:
        rate, p99, cpu, postgres_cpu = (
            samples[f"{name}: {case}: {unit}"] for unit in ("per s", "p99, ms", "CPU, us each", "Postgres' CPU, us each")
        )
        ratios = [ours / theirs for ours, theirs in zip(rate, base)]
        yield (
            f"  {name:<12} {statistics.median(rate):>9,.0f}/s  p99 {statistics.median(p99):>6.1f} ms  "
            f"CPU {statistics.median(cpu):>5.0f} us, Postgres' {statistics.median(postgres_cpu):>5.0f} us  "
            f"ratio {statistics.median(ratios):.3f} ({', '.join(f'{ratio:.3f}' for ratio in ratios)})"
        )
