#include "model/special_tokens.h"

#include <fmt/format.h>
#include <gmock/gmock.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

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

constexpr std::string_view kByteLevel = R"({"type": "ByteLevel", "trim_offsets": false})";

/// The configuration of a class whose tokens are those of the bundled tokenizer.
std::string config_of(std::string_view tokenizer_class, std::string_view flags) {
  return fmt::format(
      R"({{"tokenizer_class": "{}", "bos_token": "<|endoftext|>", "eos_token": "<|padding|>"{}{}}})",
      tokenizer_class, flags.empty() ? "" : ", ", flags);
}

/// The ids before and after a text.
std::pair<std::vector<std::int32_t>, std::vector<std::int32_t>> around(std::string_view processor,
                                                                       const std::string& config) {
  const SpecialTokens tokens = parsed(processor, config);
  return {tokens.before, tokens.after};
}

using Ids = std::vector<std::int32_t>;

// As AutoTokenizer of transformers 4.57.1 does, whatever the post_processor.
TEST(SpecialTokens, ClassesThatGoByTheFlags) {
  struct Case {
    std::string_view flags;
    bool llama_bos, neox_bos, eos;
  };
  const Case cases[] = {
      {"", true, false, false},
      {R"("add_bos_token": true)", true, true, false},
      {R"("add_bos_token": false)", false, false, false},
      {R"("add_bos_token": null)", false, false, false},
      {R"("add_eos_token": true)", true, false, true},
      {R"("add_eos_token": false)", true, false, false},
      {R"("add_bos_token": true, "add_eos_token": true)", true, true, true},
      {R"("add_bos_token": false, "add_eos_token": true)", false, false, true},
  };
  for (const Case& c : cases) {
    for (std::string_view processor : {std::string_view("null"), kByteLevel, kTemplate}) {
      for (std::string_view name :
           {"LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizerFast", "GemmaTokenizerFast",
            "CohereTokenizerFast", "GPTNeoXTokenizer", "GPTNeoXTokenizerFast"}) {
        SCOPED_TRACE(fmt::format("{} {} {}", name, c.flags, processor));
        const bool bos = name.starts_with("GPTNeoX") ? c.neox_bos : c.llama_bos;
        EXPECT_EQ(around(processor, config_of(name, c.flags)),
                  std::pair(bos ? Ids{0} : Ids{}, c.eos ? Ids{1} : Ids{}));
      }
    }
  }
}

TEST(SpecialTokens, OtherClassesTakeThePostProcessorAlone) {
  for (const char* flags : {"", R"("add_bos_token": true, "add_eos_token": true)",
                            R"("add_bos_token": false, "add_eos_token": false)"}) {
    for (const char* name : {"PreTrainedTokenizerFast", "TokenizersBackend", "GPT2Tokenizer",
                             "Qwen2Tokenizer", "Qwen2TokenizerFast", ""}) {
      SCOPED_TRACE(fmt::format("{} {}", name, flags));
      EXPECT_EQ(around(kTemplate, config_of(name, flags)), std::pair(Ids{1}, Ids{2, 3}));
      EXPECT_EQ(around(kByteLevel, config_of(name, flags)), std::pair(Ids{}, Ids{}));
    }
    const std::string without_class =
        fmt::format(R"({{"bos_token": "<|endoftext|>"{}{}}})", *flags == 0 ? "" : ", ", flags);
    EXPECT_EQ(around(kTemplate, without_class), std::pair(Ids{1}, Ids{2, 3}));
  }
  // As transformers 5 writes them.
  for (const char* flags :
       {R"("backend": "tokenizers")", R"("add_bos_token": false, "backend": "tokenizers")"}) {
    EXPECT_EQ(around(kTemplate, config_of("LlamaTokenizer", flags)), std::pair(Ids{1}, Ids{2, 3}));
    EXPECT_EQ(around("null", config_of("LlamaTokenizer", flags)), std::pair(Ids{}, Ids{}));
  }
}

TEST(SpecialTokens, HowAConfigurationGivesTheToken) {
  const auto before = [](std::string_view fields) {
    return parsed(kByteLevel, fmt::format(R"({{"add_bos_token": true, {}}})", fields)).before;
  };
  const std::string llama = R"("tokenizer_class": "LlamaTokenizerFast", )";
  EXPECT_THAT(before(llama + R"("bos_token": {"content": "<|endoftext|>"})"), ElementsAre(0));
  EXPECT_THAT(before(llama + R"("bos_token": null)"), IsEmpty());
  // GPT-NeoX's own, where the file has none.
  EXPECT_THAT(before(R"("tokenizer_class": "GPTNeoXTokenizerFast")"), ElementsAre(0));
  // Published files say "no limit" like this.
  EXPECT_THAT(before(llama + R"("bos_token": "<|endoftext|>",
                               "model_max_length": 1000000000000000019884624838656)"),
              ElementsAre(0));
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
       std::tuple("null", R"({"tokenizer_class": "LlamaTokenizer", "bos_token": "no such token"})",
                  "no such token"),
       std::tuple("null", R"({"tokenizer_class": "LlamaTokenizer"})", "bos_token: '<s>'"),
       std::tuple("null", R"({"tokenizer_class": "LlamaTokenizer", "add_bos_token": 1})",
                  "add_bos_token: is not"),
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
