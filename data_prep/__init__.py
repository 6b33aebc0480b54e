"""Raw dialogues to a prepared set; `xianliao-prepare` is the command.

Imports chatbot.text.dialogue, chatbot.text.dialogue_files, chatbot.text.tokenizer and chatbot.errors only; none of them needs torch.
"""
