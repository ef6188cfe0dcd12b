#include "model/special_tokens.h"

#include <gmock/gmock.h>

#include <string>
#include <tuple>
#include <utility>

#include "common/file.h"
#include "model/tokenizer.h"

namespace moiety {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const std::string kFolder = MOIETY_SOURCE_DIR "/models/moiety-tiny-emo";

/// The bundled tokenizer with another post_processor.
Result<SpecialTokens> try_parse(std::string_view processor, std::string_view config) {
  std::string json = std::move(read_file(kFolder + "/tokenizer.json")).value();
  const std::string_view null = R"("post_processor": null)";
  const std::size_t at = json.find(null);
  EXPECT_NE(at, std::string::npos);
  std::string replaced = R"("post_processor": )";
  replaced += processor;
  json.replace(at, null.size(), replaced);
  MOIETY_ASSIGN(const Tokenizer tokenizer, Tokenizer::parse(json));
  SpecialTokens tokens = tokenizer.special_tokens();
  if (!config.empty()) {
    MOIETY_TRY(apply_tokenizer_config(
        config, [&](std::string_view text) { return tokenizer.token_id(text); }, tokens));
  }
  return tokens;
}

SpecialTokens parsed(std::string_view processor, std::string_view config = "") {
  auto tokens = try_parse(processor, config);
  if (!tokens) ADD_FAILURE() << tokens.error().message;
  return tokens ? *tokens : SpecialTokens{};
}

constexpr std::string_view kTemplate =
    R"({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                   {"SpecialToken": {"id": "</s>", "type_id": 0}}],
        "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]},
                                       "</s>": {"id": "</s>", "ids": [2, 3], "tokens": ["</s>", "x"]}}})";

TEST(SpecialTokens, OfEveryPostProcessor) {
  EXPECT_THAT(parsed("null").before, IsEmpty());
  EXPECT_THAT(parsed(R"({"type": "ByteLevel", "trim_offsets": false})").before, IsEmpty());
  EXPECT_THAT(parsed(kTemplate).before, ElementsAre(1));
  EXPECT_THAT(parsed(kTemplate).after, ElementsAre(2, 3));
  const SpecialTokens bert =
      parsed(R"({"type": "BertProcessing", "cls": ["[CLS]", 101], "sep": ["[SEP]", 102]})");
  EXPECT_THAT(bert.before, ElementsAre(101));
  EXPECT_THAT(bert.after, ElementsAre(102));
  std::string sequence = R"({"type": "Sequence", "processors": [{"type": "ByteLevel"}, )";
  sequence += kTemplate;
  sequence += "]}";
  EXPECT_THAT(parsed(sequence).before, ElementsAre(1));
}

TEST(SpecialTokens, TheFlagsOfTheConfigurationWin) {
  EXPECT_THAT(parsed(kTemplate, R"({"add_bos_token": false})").before, IsEmpty());
  EXPECT_THAT(parsed(kTemplate, R"({"add_eos_token": false})").after, IsEmpty());
  EXPECT_THAT(parsed("null", R"({"add_bos_token": true, "bos_token": "<|endoftext|>"})").before,
              ElementsAre(0));
  EXPECT_THAT(
      parsed("null", R"({"add_bos_token": true, "bos_token": {"content": "<|endoftext|>"}})")
          .before,
      ElementsAre(0));
  EXPECT_THAT(parsed(kTemplate, R"({"add_bos_token": true, "bos_token": null})").before, IsEmpty());
  EXPECT_THAT(parsed(kTemplate, R"({"bos_token": "<|endoftext|>"})").before, ElementsAre(1));
  // Published files say "no limit" like this.
  const std::string_view endless = R"({"model_max_length": 1000000000000000019884624838656})";
  EXPECT_THAT(parsed(kTemplate, endless).before, ElementsAre(1));
}

TEST(SpecialTokens, NamesWhatIsNotUnderstood) {
  for (
      const auto& [processor, config, what] :
      {std::tuple(R"({"type": "Magic"})", "", "post_processor"),
       std::tuple("5", "", "post_processor"),
       std::tuple(R"({"type": "TemplateProcessing"})", "", "single"),
       std::tuple(
           R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x"}}], "special_tokens": {}})",
           "", "special_tokens"),
       std::tuple(R"({"type": "BertProcessing", "cls": "x"})", "", "cls"),
       std::tuple("null", R"({"add_bos_token": true, "bos_token": "no such token"})",
                  "no such token"),
       std::tuple("null", "{", "not JSON"), std::tuple("null", "[]", "not a JSON object")}) {
    const auto tokens = try_parse(processor, config);
    ASSERT_FALSE(tokens) << processor;
    EXPECT_THAT(tokens.error().message, HasSubstr(what));
  }
}

TEST(SpecialTokens, OfTheBundledModel) {
  const auto tokenizer = Tokenizer::load(kFolder);
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  EXPECT_THAT(tokenizer->special_tokens().before, IsEmpty());
  EXPECT_THAT(tokenizer->special_tokens().after, IsEmpty());
}

}  // namespace
}  // namespace moiety
