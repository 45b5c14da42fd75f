"""The loads of closed loop, by their names in the report."""

from dataclasses import replace

from benchmarks.figures.accept import Shape

UNARY = {
    in_flight: Shape(in_flight=in_flight, events=events)
    for in_flight, events in ((1, 3_000), (8, 10_000), (64, 20_000), (256, 20_000))
}
#: Four streams, by events a message.
STREAM = {
    1: Shape(in_flight=4, per_message=1, events=120_000),
    10: Shape(in_flight=4, per_message=10, events=240_000),
    100: Shape(in_flight=4, per_message=100, events=240_000),
}
#: A hundred small events a message, by open streams.
STREAMS = {n: Shape(in_flight=n, per_message=100, events=240_000) for n in (1, 16, 64)}
KEYED_STREAM = {
    n: replace(STREAM[n], events=events, keyed=True) for n, events in ((1, 60_000), (100, 120_000))
}
KEYED_UNARY = {n: replace(UNARY[n], keyed=True) for n in (1, 64)}
MEDIUM = Shape(corpus="medium", in_flight=4, per_message=50, events=80_000)
GITHUB = Shape(corpus="github", in_flight=4, per_message=20, events=24_000)
GITHUB_64 = Shape(corpus="github", in_flight=64, per_message=20, events=25_600)
