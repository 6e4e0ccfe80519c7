"""How a step of writing runs: each engine offers what `hanmo.generate.loop.Engine` asks for."""
