"""xianliao-name: teach a bot its name and maker, which it should say only when asked, and measure whether it does.

    dialogues.py    dialogues about the name and the maker, and everyday dialogues beside them
    guard.py        measurement of what the bot says after the training and of what it has forgotten
    cli.py          the command

The lists were written for this project. `rehearsal.jsonl.xz` is a sample of checkpoints/recipe/dialogues: 1,530 dialogues,
260 of them about the bot, with `{name}` for its name. `held_out.jsonl.xz` has 200 dialogues that no bot is trained on.
"""
