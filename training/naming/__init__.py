"""xianliao-name: teach a bot its name and maker, which it should say only when asked, and measure whether it does.

    dialogues.py    dialogues about the name and the maker, and everyday dialogues beside them
    objective.py    the loss: learn the answers, keep all other replies as they were
    mixing.py       mix the weights before and after the training
    guard.py        measure what the bot says after the training, and what it has forgotten
    results.py      results of the measurements on disk, for --resume
    progress.py     progress bars and the expected time
    cli.py          the command

The lists of questions, answers and everyday messages were written for this project. `rehearsal.jsonl.xz` is a sample
of checkpoints/recipe/dialogues and data_prep/samples: 3,472 dialogues, some of them only their beginning, 259 with
`{name}` for the bot's name. `held_out.jsonl.xz` (200) and `tuning.jsonl.xz` (150) have dialogues that no bot is trained
on. No two of the parts training, tuning and held_out share a question.
"""
