// Where a checkpoint's template comes from.

#include "model/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <filesystem>
#include <string>

#include "common/file.h"

namespace moiety {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class ChatTemplateLoad : public ::testing::Test {
 protected:
  ChatTemplateLoad() {
    std::string pattern = (fs::temp_directory_path() / "moiety-chat-template-XXXXXX").string();
    folder_ = mkdtemp(pattern.data());
  }
  ~ChatTemplateLoad() override { fs::remove_all(folder_); }

  void write(const std::string& name, std::string_view content) {
    fs::create_directories((folder_ / name).parent_path());
    ASSERT_TRUE(write_file(folder_ / name, content));
  }

  std::string rendered(std::string_view name = "default", boost::json::object variables = {}) {
    const auto loaded = ChatTemplate::load(folder_, name);
    if (!loaded) return "error: " + loaded.error().message;
    if (!*loaded) return "none";
    const auto text = (*loaded)->render(variables);
    return text ? *text : "error: " + text.error().message;
  }

  fs::path folder_;
};

TEST_F(ChatTemplateLoad, FindsNone) {
  EXPECT_EQ(rendered(), "none");
  write("tokenizer_config.json", R"({"bos_token": "<s>"})");
  EXPECT_EQ(rendered(), "none");
  write("tokenizer_config.json", R"({"chat_template": null})");
  EXPECT_EQ(rendered(), "none");
}

TEST_F(ChatTemplateLoad, PrefersTheOwnFile) {
  write("tokenizer_config.json", R"({"chat_template": "config"})");
  EXPECT_EQ(rendered(), "config");
  EXPECT_EQ(rendered("tool_use"), "none");
  write("chat_template.json", R"({"chat_template": "json"})");
  EXPECT_EQ(rendered(), "json");
  write("chat_template.jinja", "jinja\n");
  EXPECT_EQ(rendered(), "jinja");
  write("additional_chat_templates/tool_use.jinja", "tools");
  EXPECT_EQ(rendered("tool_use"), "tools");
}

TEST_F(ChatTemplateLoad, ReadsListsOfTemplates) {
  write(
      "tokenizer_config.json",
      R"({"chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]})");
  EXPECT_EQ(rendered(), "d");
  EXPECT_EQ(rendered("tool_use"), "t");
  EXPECT_EQ(rendered("rag"), "none");
  write("chat_template.jinja", "own");
  EXPECT_EQ(rendered(), "own");
  EXPECT_EQ(rendered("tool_use"), "none") << "files replace the whole list";
  write("additional_chat_templates/tool_use.jinja", "own t");
  EXPECT_EQ(rendered("tool_use"), "own t");
}

TEST_F(ChatTemplateLoad, AListGoesWithTheDefaultOfItsOwnFile) {
  write(
      "tokenizer_config.json",
      R"({"chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]})");
  write("chat_template.json", R"({"chat_template": "json"})");
  EXPECT_EQ(rendered(), "json");
  EXPECT_EQ(rendered("tool_use"), "none") << "chats have the template of another file";
  write(
      "chat_template.json",
      R"({"chat_template": [{"name": "default", "template": "json"}, {"name": "tool_use", "template": "json t"}]})");
  EXPECT_EQ(rendered("tool_use"), "json t");
  write("chat_template.json", R"({"chat_template": null})");
  EXPECT_EQ(rendered(), "d");
  EXPECT_EQ(rendered("tool_use"), "t");
}

TEST_F(ChatTemplateLoad, AddsWhatHuggingFaceAdds) {
  write("chat_template.jinja",
        "{{ bos_token }}{{ eos_token }}{{ pad_token is defined }}{{ additional_special_tokens }}"
        "{{ tools }}{{ documents }}{{ add_generation_prompt }}{{ enable_thinking is defined }}");
  write(
      "tokenizer_config.json",
      R"({"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>", "pad_token": null,
            "additional_special_tokens": ["<a>", {"content": "<b>"}], "added_tokens_decoder": {}})");
  write("special_tokens_map.json", R"({"eos_token": "ignored beside added_tokens_decoder"})");
  EXPECT_EQ(rendered(), "<s></s>False['<a>', '<b>']NoneNoneFalseFalse");
  EXPECT_EQ(rendered("default", {{"bos_token", "B"}, {"tools", boost::json::array{1}}}),
            "B</s>False['<a>', '<b>'][1]NoneFalseFalse");
  write("tokenizer_config.json", R"({"bos_token": "<s>", "eos_token": "</s>"})");
  write("special_tokens_map.json", R"({"eos_token": {"content": "<end>"}})");
  EXPECT_EQ(rendered(), "<s><end>FalseNoneNoneFalseFalse");
}

TEST_F(ChatTemplateLoad, NamesTheFileAndTheReason) {
  const auto contains = [](std::string_view a, std::string_view b) {
    return ::testing::AllOf(HasSubstr(std::string(a)), HasSubstr(std::string(b)));
  };
  write("tokenizer_config.json", "{");
  EXPECT_THAT(rendered(), contains("tokenizer_config.json", "not JSON"));
  write("tokenizer_config.json", "[]");
  EXPECT_THAT(rendered(), contains("tokenizer_config.json", "not a JSON object"));
  write("tokenizer_config.json", R"({"chat_template": 5})");
  EXPECT_THAT(rendered(), contains("tokenizer_config.json", "chat_template: neither"));
  write("tokenizer_config.json", R"({"chat_template": [{"name": "default"}]})");
  EXPECT_THAT(rendered(), contains("tokenizer_config.json", "chat_template: neither"));
  write("tokenizer_config.json", R"({"chat_template": "\n{% oops %}"})");
  EXPECT_THAT(rendered(), contains("tokenizer_config.json", "line 2: unknown tag 'oops'"));
  write("chat_template.json", "{}");  // it has none: what is wrong is in the other
  EXPECT_THAT(rendered(), HasSubstr("tokenizer_config.json"));
  EXPECT_THAT(rendered("../x"), HasSubstr("no name of a chat template"));
}

}  // namespace
}  // namespace moiety
