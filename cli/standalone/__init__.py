"""Everything on one machine: embedded servers, managed processes, a supervisor and the stack of `turnline up`.

Of our own modules it imports only `settings`, `beat_schedule` and `cli.errors`.
"""
