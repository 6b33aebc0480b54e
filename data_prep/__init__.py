"""Raw dialogues to a prepared set; `xianliao-prepare` is the command.

Imports chatbot.dialogue, chatbot.dialogue_files, chatbot.tokenizer and chatbot.errors only; none of them needs torch.
"""
