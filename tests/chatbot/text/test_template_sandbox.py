"""Chat templates: those in use render as transformers renders them, and hostile ones end in a sentence, soon."""

from __future__ import annotations

import resource

import pytest
from jinja2.exceptions import TemplateError as JinjaError
from transformers.utils.chat_template_utils import render_jinja_template

from chatbot.text.chat_template import TemplateError, split_template
from chatbot.text.template_sandbox import BUDGET, _Sandbox, render
from tests.chat_models import CHATML, LLAMA
from tests.processor_time import processor_seconds

# Written for this test with the constructs of the templates that the models of these names have.
QWEN25 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "<|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- message.content }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""  # noqa: E501

QWEN3 = """{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and reasoning_content)) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""  # noqa: E501

LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""  # noqa: E501

LLAMA31 = """{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " ~ date_string ~ "\\n\\n" }}
{{- system_message ~ "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif message.tool_calls|length != 1 %}
        {{- raise_exception("This model only supports single tool-calls at once!") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, roles must alternate") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST]" + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST]" + message["content"] + "[/INST]" }}
        {%- endif %}
        {%- if message == user_messages[-1] %}{{- "" }}{%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- message["content"] + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported!") }}
    {%- endif %}
{%- endfor %}"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"""  # noqa: E501

GENERATION = """{%- macro turn(role, text) -%}<|{{ role }}|>
{{ text }}{%- endmacro -%}
{%- for message in messages if message.content -%}
{%- if message.role == 'assistant' -%}{% generation %}{{ turn('bot', message.content) }}<|end|>{% endgeneration %}
{%- else -%}{{ turn(message.role | upper, message.content | replace('。', '.')) }}<|end|>{%- endif -%}
{%- if message.role == 'nobody' %}{% break %}{% endif %}
{%- endfor -%}{{ '<|bot|>\\n' if add_generation_prompt }}"""

USUAL = {
    **{"chatml": CHATML, "qwen2.5": QWEN25, "qwen3": QWEN3, "llama2": LLAMA2, "llama3.1": LLAMA31},
    **{"mistral": MISTRAL, "gemma": GEMMA, "generation": GENERATION},
}
ALTERNATING = ("llama2", "mistral", "gemma")
CHAT = [
    {"role": "user", "content": "你好。 "},
    {"role": "assistant", "content": "<think>\n嗯\n</think>\n\n你好呀"},
    {"role": "user", "content": "天气 'quoted' {{ 7*7 }}"},
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("with_system", [False, True])
@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("name", USUAL)
def test_usual_templates_render_as_in_transformers(name, turns, with_system):
    messages = [{"role": "system", "content": "简短"}] * with_system + CHAT[:turns]
    if with_system and name == "gemma":
        with pytest.raises(JinjaError, match="System role not supported"):
            render(USUAL[name], {"messages": messages, **TOKENS})
        return
    expected, _ = render_jinja_template([messages], None, None, USUAL[name], add_generation_prompt=True, **TOKENS)
    variables = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True, **TOKENS}
    assert render(USUAL[name], variables) == expected[0] != ""


def test_usual_templates_need_a_small_part_of_the_budget():
    for name, template in {**USUAL, "llama": LLAMA}.items():
        sandbox = _Sandbox()
        messages = [{"role": ("user", "assistant")[i % 2], "content": "早上好" * 20} for i in range(5)]
        sandbox.from_string(template).render({"messages": messages, "add_generation_prompt": True, **TOKENS})
        assert BUDGET - sandbox.budget.left < 20_000, name


def test_the_date_is_fixed():
    assert render("{{ strftime_now('%Y-%m-%d %H') }}", {}) == "26 Jul 2024"


def grow(expression: str, start: str = "'a'") -> str:
    """A template that repeats `expression` 60 times on n.x."""
    loop = f"{{% for i in range(60) %}}{{% set n.x = {expression} %}}{{% endfor %}}"
    return f"{{% set n = namespace(x={start}) %}}{loop}{{{{ n.x | length }}}}"


LOOP = "{% for a in range(999) %}"
HOSTILE = {
    "nested loops": (LOOP * 3 + "{% endfor %}" * 3, "steps"),
    "loop with a condition": (LOOP + "{% for b in range(999) if false %}{% endfor %}{% endfor %}", "steps"),
    "text in loops": (LOOP * 2 + "x" * 60_000 + "{% endfor %}" * 2, "steps"),
    "budget": ("{% set x = [-99999999] | map('spend_units') | list %}" + LOOP * 2 + "{% endfor %}" * 2, "steps"),
    "long range": ("{% for a in range(99999) %}{% endfor %}", "too large"),
    "recursive loop": ("{% for a in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}", "not supported"),
    "string product": ("{{ 'a' * 500000000 }}", "too large"),
    "list product": ("{{ [1] * 500000000 }}", "too large"),
    "folded product": ("{{ 'a' * 999 * 999 * 999 * 999 }}", "longer"),
    "doubled by +": (grow("n.x + n.x"), "steps"),
    "doubled by ~": (grow("n.x ~ n.x"), "steps"),
    "doubled lists": (grow("[n.x, n.x]"), "steps"),
    "doubled tuples": (grow("(n.x, n.x)"), "steps"),
    "doubled dictionaries": (grow("{1: n.x, 2: n.x}"), "steps"),
    "doubled numbers": (grow("n.x * n.x", "10"), "too large"),
    "power": ("{{ 9 ** 9 ** 9 }}", "not supported"),
    "replace": (grow("n.x.replace('a', 'aaaaaaaa')"), "longer"),
    "replace filter": (grow("n.x | replace('a', 'aaaaaaaa')"), "longer"),
    "join": ("{{ ('b' * 900).join(['a' * 900] * 900) }}", "steps|longer"),
    "% format": ("{{ '%999999999d' % 1 }}", "not supported"),
    "format method": ("{{ '{:>999999999}'.format(1) }}", "not supported"),
    "format filter": ("{{ '%999999999d' | format(1) }}", "No filter"),
    "center": ("{{ 'a'.center(999999999) }}", "not supported"),
    "indent": ("{{ 'a\\nb' | indent(999999999) }}", "too large"),
    "tojson indent": ("{{ [1] | tojson(indent=999999999) }}", "too large"),
    "macro recursion": ("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    "macro tree": ("{% macro f(x) %}{% if x %}{{ f(x-1) }}{{ f(x-1) }}{% endif %}{% endmacro %}{{ f(60) }}", "steps"),
    "set blocks": ("{% set x %}aa{% endset %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60, "steps"),
    "comparing": ("{% set x = [0] * 900 %}{% set x = [x] * 90 %}" + LOOP + "{{ x == [x] }}{% endfor %}", "steps"),
    "searching": ("{% set x = 'a' * 900 %}" + LOOP + "{% if 'b' in x %}{% endif %}{% endfor %}", "steps"),
    "testing": ("{% set x = [0] * 900 %}" + LOOP + "{% if x is eq(x) %}{% endif %}{% endfor %}", "steps"),
    "selecting": ("{% set x = [[0] * 900] * 90 %}{{ x | select('eq', x) | list }}", "steps"),
    "namespace as text": ("{% set a = namespace(x=1) %}" + grow("a").replace("length", "string"), "not text"),
    "doubled namespaces": (
        "{% set n = namespace(x=1) %}"
        + "{% set m = namespace() %}{% set m.x = n %}{% set m.y = n %}{% set n = m %}" * 60
        + "{{ n | string }}",
        "not text",
    ),
    "sorting": ("{% set x = range(999) | list %}" + LOOP + "{% set y = x | sort %}{% endfor %}", "steps"),
    "parentheses": ("{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}", "recursion"),
    "lists in lists": ("{{ " + "[" * 20_000 + "1" + "]" * 20_000 + " }}", "recursion"),
    "long sum": ("{{ " + "1+" * 20_000 + "1 }}", "recursion"),
    "attributes": ("{{ a" + ".b" * 30_000 + " }}", "recursion"),
    "elif": ("{% if 0 %}" + "{% elif 0 %}" * 4_500 + "{% endif %}", "recursion"),
    "blocks": ("{% for a in [1] %}" * 1_500 + "{% endfor %}" * 1_500, "recursion"),
    "digits": ("{{ " + "9" * 60_000 + " }}", "limit"),
    "comments": ("{#" * 30_000, "comment"),
    "too long": ("x" * 70_000, "65,536 characters"),
    "random filter": ("{{ [1, 2, 3] | random }}", "No filter"),
    "lipsum": ("{{ lipsum(3) }}", "undefined"),
    "now": ("{{ now() }}", "undefined"),
    "address": ("{% macro f() %}{% endmacro %}{{ f }}", "not text"),
    "import": ("{% import 'os' as os %}", "other templates"),
    "include": ("{% include '/etc/passwd' %}", "other templates"),
    "block": ("{% block a %}{{ self.a() }}{% endblock %}", "other templates"),
    "classes": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    "append": ("{{ messages.append(1) }}", "unsafe|not supported"),
    "namespaces": ("{% set a = namespace(x=1) %}{{ namespace(x=a) }}", "not text"),
}


@pytest.mark.parametrize(("template", "words"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_templates_end_in_a_sentence(template, words):
    def refuse() -> None:
        with pytest.raises(TemplateError, match=f"cannot be rendered .*({words})") as refusal:
            split_template({"chat_template": template})
        assert "\n" not in str(refusal.value)

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert processor_seconds(refuse, 3) < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 100_000, "kB"


def test_generators_are_lists():
    """A generator would be written with its address in memory."""
    assert render("{{ ['b', 'a'] | map('upper') }}", {}) == "['B', 'A']"
