#include "model/tokenizer.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "common/utf8.h"
#include "model/byte_level.h"

namespace moiety {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

const Tokenizer& tiny_emo() {
  static const Tokenizer tokenizer = [] {
    auto loaded = Tokenizer::load(MOIETY_SOURCE_DIR "/models/moiety-tiny-emo");
    EXPECT_TRUE(loaded) << loaded.error().message;
    return std::move(*loaded);
  }();
  return tokenizer;
}

/// A tokenizer.json whose vocabulary is the 256 bytes (id = byte) and "ab" (256); parts can be
/// replaced.
struct SmallFile {
  std::string normalizer = "null";
  std::string pre_tokenizer =
      R"({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false})";
  std::string decoder = R"({"type": "ByteLevel"})";
  std::string post_processor = "null";
  std::string added_tokens = "[]";
  std::string merges = R"([["a", "b"]])";
  std::string model_type = "BPE";
  std::string model_extra;
  int left_out_byte = -1;

  std::string text() const {
    std::string vocab;
    for (int byte = 0; byte < 256; ++byte) {
      if (byte == left_out_byte) continue;
      const std::string_view spelled = byte_level_character(static_cast<std::uint8_t>(byte));
      vocab += fmt::format("\"{}{}\": {}, ", spelled == "\"" || spelled == "\\" ? "\\" : "",
                           spelled, byte);
    }
    return fmt::format(
        R"({{"version": "1.0", "normalizer": {}, "pre_tokenizer": {}, "decoder": {}, "post_processor": {},
          "added_tokens": {}, "model": {{"type": "{}", {} "vocab": {{ {} "ab": 256}}, "merges": {}}}}})",
        normalizer, pre_tokenizer, decoder, post_processor, added_tokens, model_type, model_extra,
        vocab, merges);
  }
};

std::string decode_as_stream(const Tokenizer& tokenizer,
                             const std::vector<std::int32_t>& ids,
                             bool skip_special) {
  StreamDecoder stream(tokenizer, skip_special);
  std::string text;
  for (std::int32_t id : ids) {
    const std::string part = stream.push(id);
    EXPECT_TRUE(is_valid_utf8(part)) << "part of a character after token " << id;
    text += part;
  }
  return text + stream.finish();
}

// Expected ids below come from PyPI tokenizers.
TEST(Tokenizer, EncodesAsTheOriginal) {
  EXPECT_THAT(*tiny_emo().encode(""), ElementsAre());
  EXPECT_THAT(*tiny_emo().encode("Hello, world!"), ElementsAre(41, 532, 80, 13, 4757, 2));
  EXPECT_THAT(*tiny_emo().encode("for (int i = 0; i < 10; ++i) {\n  sum += x[i];\n}"),
              ElementsAre(1230, 314, 430, 786, 326, 222, 17, 28, 786, 529, 222, 470, 28, 1120, 74,
                          10, 404, 222, 6571, 3245, 539, 2109, 6404, 94));
  EXPECT_THAT(*tiny_emo().encode("Stra\u00dfe  12345\t\n"),
              ElementsAre(974, 421, 2519, 70, 222, 222, 5324, 1519, 199, 200));
  EXPECT_THAT(*tiny_emo().encode("a<|endoftext|>b <|padding|>"), ElementsAre(66, 0, 67, 222, 1));
  EXPECT_THAT(*tiny_emo().encode("\U0001F468\u200D\U0001F469 e\u0301"),
              ElementsAre(174, 255, 241, 103, 699, 237, 174, 255, 241, 104, 319, 138, 225));
}

TEST(Tokenizer, KnowsItsVocabulary) {
  const Tokenizer& tokenizer = tiny_emo();
  EXPECT_EQ(tokenizer.vocab_size(), 8192);
  EXPECT_EQ(tokenizer.token_id("<|endoftext|>"), 0);
  EXPECT_EQ(tokenizer.token_id("<|padding|>"), 1);
  EXPECT_EQ(tokenizer.token_id("no such token"), -1);
  EXPECT_TRUE(tokenizer.is_special(0));
  EXPECT_FALSE(tokenizer.is_special(2));
  EXPECT_FALSE(tokenizer.is_special(-1));
  EXPECT_FALSE(tokenizer.is_special(8192));
  EXPECT_EQ(tokenizer.token_bytes(0), "<|endoftext|>");
  EXPECT_EQ(tokenizer.token_bytes(tokenizer.token_id("\u0120")), " ");
  EXPECT_EQ(tokenizer.token_bytes(-1), "");
  EXPECT_EQ(tokenizer.token_bytes(1 << 30), "");
}

TEST(Tokenizer, DecodesWhatItEncodes) {
  for (std::string text : {"", " ", "\n\n \t", "don't stop", "\u00fcber 12345,67 \u20ac",
                           "\u4f60\u597d \U0001F468\u200D\U0001F469", "e\u0301\u0323",
                           "\x01\x1f\x7f", "x = {1: 'a'}  # comment\n\n\n"}) {
    const auto ids = *tiny_emo().encode(text);
    EXPECT_EQ(tiny_emo().decode(ids), text);
    EXPECT_EQ(decode_as_stream(tiny_emo(), ids, true), text);
  }
  const std::string with_nul("a\0b", 3);
  EXPECT_EQ(tiny_emo().decode(*tiny_emo().encode(with_nul)), with_nul);
}

TEST(Tokenizer, SpecialTokensAreFoundAndLeftOut) {
  const auto ids = *tiny_emo().encode("a<|endoftext|>b<|endoftext");
  ASSERT_GE(ids.size(), 3u);
  EXPECT_EQ(ids[1], 0);
  EXPECT_EQ(tiny_emo().decode(ids), "ab<|endoftext");
  EXPECT_EQ(tiny_emo().decode(ids, false), "a<|endoftext|>b<|endoftext");
}

TEST(Tokenizer, InvalidUtf8IsReplaced) {
  EXPECT_EQ(*tiny_emo().encode("a\xE2\x82z\xFF"), *tiny_emo().encode("a\uFFFDz\uFFFD"));
  EXPECT_EQ(*tiny_emo().encode("\xED\xA0\x80"), *tiny_emo().encode("\uFFFD\uFFFD\uFFFD"));
}

TEST(Tokenizer, MegabyteTextsComeBack) {
  for (const char* unit : {" ", "a", "\n", "1", "\u4e2d", " \n"}) {
    std::string text;
    while (text.size() < (std::size_t{1} << 20)) text += unit;
    EXPECT_EQ(tiny_emo().decode(*tiny_emo().encode(text)), text) << '"' << unit << '"';
  }
  const std::string text = std::string(1 << 20, ' ') + "x";
  EXPECT_EQ(tiny_emo().decode(*tiny_emo().encode(text)), text);
}

TEST(Tokenizer, ThreadsShareOne) {
  const std::string text =
      "The gate picks experts; \u00fcber 12345 tokens.\n\n  <|endoftext|> don't";
  const auto expected = *tiny_emo().encode(text);
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (int& count : wrong) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) count += *tiny_emo().encode(text) != expected;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(wrong, ElementsAre(0, 0, 0, 0));
}

TEST(StreamDecoder, EqualsDecodeForAnyTokens) {
  std::mt19937 random(7);
  std::vector<std::int32_t> bytes_only;  // tokens of one byte: mostly pieces of characters
  for (std::int32_t id = 0; id < tiny_emo().vocab_size(); ++id) {
    if (tiny_emo().token_bytes(id).size() == 1) bytes_only.push_back(id);
  }
  ASSERT_EQ(bytes_only.size(), 256u);
  for (int round = 0; round < 2000; ++round) {
    std::vector<std::int32_t> ids(random() % 24);
    for (auto& id : ids) {
      id = random() % 3 == 0 ? static_cast<std::int32_t>(random() % 8200) - 4
                             : bytes_only[64 + random() % 192];
    }
    for (bool skip_special : {true, false}) {
      ASSERT_EQ(decode_as_stream(tiny_emo(), ids, skip_special),
                tiny_emo().decode(ids, skip_special));
    }
  }
}

TEST(StreamDecoder, HoldsBackAnUnfinishedCharacter) {
  const auto tokenizer = Tokenizer::parse(SmallFile{}.text());
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  StreamDecoder stream(*tokenizer);
  EXPECT_EQ(stream.push(0xF0), "");
  EXPECT_EQ(stream.push(0x9F), "");
  EXPECT_EQ(stream.push(0x98), "");
  EXPECT_EQ(stream.push(0x80), "\U0001F600");
  EXPECT_EQ(stream.push(0xE2), "");
  EXPECT_EQ(stream.push('x'), "\uFFFDx");
  EXPECT_EQ(stream.push(0xC3), "");
  EXPECT_EQ(stream.finish(), "\uFFFD");
  EXPECT_EQ(stream.finish(), "");
}

TEST(TokenizerFile, MergesAsStringsAndPairs) {
  for (const char* merges : {R"([["a", "b"]])", R"(["a b"])", R"(["#version: 0.2", "a b"])"}) {
    SmallFile file;
    file.merges = merges;
    const auto tokenizer = Tokenizer::parse(file.text());
    ASSERT_TRUE(tokenizer) << tokenizer.error().message;
    EXPECT_THAT(*tokenizer->encode("aab"), ElementsAre('a', 256)) << merges;
  }
}

TEST(TokenizerFile, IgnoreMergesTakesWholeTokens) {
  SmallFile file{.merges = "[]", .model_extra = R"("ignore_merges": true,)"};
  EXPECT_THAT(*Tokenizer::parse(file.text())->encode("ab"), ElementsAre(256));
  file.model_extra = R"("ignore_merges": null,)";
  EXPECT_THAT(*Tokenizer::parse(file.text())->encode("ab"), ElementsAre('a', 'b'));
}

TEST(TokenizerFile, NormalizersChain) {
  SmallFile file;
  file.normalizer = R"({"type": "Sequence", "normalizers": [{"type": "Lowercase"},
      {"type": "Replace", "pattern": {"String": "x"}, "content": "ab"}, {"type": "NFC"}]})";
  const auto tokenizer = Tokenizer::parse(file.text());
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  EXPECT_EQ(tokenizer->decode(*tokenizer->encode("AX\u0130E\u0301")), "aabi\u0307\u00e9");
}

// PyPI tokenizers normalizes by Unicode 9; U+32FF came with 12.1, U+1AC1 with 14.
TEST(TokenizerFile, NormalFormsLeaveNewCharactersAlone) {
  SmallFile file;
  file.normalizer = R"({"type": "NFKC"})";
  const auto tokenizer = Tokenizer::parse(file.text());
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  const auto normalized = [&](const char* text) {
    return tokenizer->decode(*tokenizer->encode(text));
  };
  EXPECT_EQ(normalized("\u32fe\u32ff"), "\u30f2\u32ff");
  EXPECT_EQ(normalized("a\u0301\u0323"), "\u1ea1\u0301");
  EXPECT_EQ(normalized("a\u1ac1\u0301"), "a\u1ac1\u0301");
  EXPECT_EQ(normalized("a\u0301\u1ac1"), "\u00e1\u1ac1");
}

TEST(TokenizerFile, APatternOfTooManyStepsIsAnError) {
  SmallFile file;
  file.normalizer = R"({"type": "Replace", "pattern": {"Regex": "(?:a|aa)+[bc]"}, "content": "c"})";
  const auto tokenizer = Tokenizer::parse(file.text());
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  const auto failed = tokenizer->encode(std::string(100, 'a'));
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code, ErrorCode::kResourceExhausted);
  EXPECT_THAT(failed.error().message, HasSubstr("(?:a|aa)+[bc]"));
  EXPECT_THAT(*tokenizer->encode("aab"), ElementsAre('c')) << "other texts go on";
}

// Each of these would make gigabytes of five letters.
TEST(TokenizerFile, RewritingThatGrowsWithoutEndIsAnError) {
  const auto six_times = [](const std::string& step) {
    std::string steps = step;
    for (int i = 1; i < 6; ++i) steps += ", " + step;
    return steps;
  };
  const std::string replace =
      fmt::format(R"({{"type": "Replace", "pattern": {{"String": "l"}}, "content": "{}"}})",
                  std::string(1000, 'l'));
  const std::string between =
      fmt::format(R"({{"type": "Replace", "pattern": {{"Regex": ""}}, "content": "{}"}})",
                  std::string(77, 'l'));
  const std::string spell =
      R"({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false})";
  const std::string more_spells = six_times(six_times(spell));
  const auto sequence = [](const char* name, const std::string& steps) {
    return fmt::format(R"({{"type": "Sequence", "{}": [{}]}})", name, steps);
  };
  std::vector<SmallFile> files(4);
  files[0].normalizer = sequence("normalizers", six_times(replace));
  files[1].normalizer = sequence("normalizers", six_times(between));
  files[2].normalizer = sequence("normalizers", six_times(six_times(R"({"type": "ByteLevel"})")));
  files[3].pre_tokenizer = sequence("pretokenizers", more_spells);
  for (const SmallFile& file : files) {
    const auto tokenizer = Tokenizer::parse(file.text());
    ASSERT_TRUE(tokenizer) << tokenizer.error().message;
    const auto failed = tokenizer->encode("hello \u00e4");
    ASSERT_FALSE(failed) << file.text().substr(0, 300);
    EXPECT_EQ(failed.error().code, ErrorCode::kResourceExhausted);
    EXPECT_THAT(failed.error().message, HasSubstr("rewrites this text to more than"));
  }
  SmallFile decoding;
  decoding.decoder = sequence("decoders", six_times(replace));
  const auto refused = Tokenizer::parse(decoding.text());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kResourceExhausted);
}

TEST(Tokenizer, TheMostTokens) {
  const std::string text = "Hello, world!";  // six
  EXPECT_THAT(*tiny_emo().encode(text, false, 6), SizeIs(6));
  EXPECT_THAT(*tiny_emo().encode("", false, 0), ElementsAre());
  for (const std::string& longer : {text, text + text, std::string(1000, ' ') + text}) {
    const auto refused = tiny_emo().encode(longer, false, 5);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
    EXPECT_EQ(refused.error().message, "the text has more than 5 tokens");
  }
}

TEST(TokenizerFile, AddedTokenOutsideTheAlphabet) {
  SmallFile file;
  file.added_tokens = R"([{"id": 300, "content": "<\uff5cuser name\uff5c>", "special": false}])";
  const auto tokenizer = Tokenizer::parse(file.text());
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  EXPECT_EQ(tokenizer->vocab_size(), 301);
  EXPECT_THAT(*tokenizer->encode("a<\uff5cuser name\uff5c>"), ElementsAre('a', 300));
  EXPECT_EQ(tokenizer->decode({300, 299, 'b'}), "<\uff5cuser name\uff5c>b");
}

// Characters, as Llama 2 and Mixtral have them: "a", "b", U+2581 and U+2581 "a" are tokens, and the
// bytes of U+00E4.
std::string fallback_file(std::string_view decoder) {
  return fmt::format(
      R"({{"normalizer": {{"type": "Sequence", "normalizers": [
             {{"type": "Prepend", "prepend": "\u2581"}},
             {{"type": "Replace", "pattern": {{"String": " "}}, "content": "\u2581"}}]}},
          "pre_tokenizer": null, "decoder": {},
          "post_processor": {{"type": "TemplateProcessing",
             "single": [{{"SpecialToken": {{"id": "<s>"}}}}, {{"Sequence": {{"id": "A"}}}}],
             "special_tokens": {{"<s>": {{"ids": [1]}}}}}},
          "added_tokens": [{{"id": 1, "content": "<s>", "special": true}}],
          "model": {{"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
             "vocab": {{"<unk>": 0, "<s>": 1, "<0xC3>": 2, "<0xA4>": 3, "a": 4, "b": 5, "\u2581": 6,
                        "\u2581a": 7}},
             "merges": ["\u2581 a"]}}}})",
      decoder);
}

constexpr std::string_view kMixtralDecoder = R"({"type": "Sequence", "decoders": [
    {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
    {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]})";

TEST(ByteFallback, EncodesAndDecodes) {
  const auto tokenizer = Tokenizer::parse(fallback_file(kMixtralDecoder));
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  EXPECT_THAT(*tokenizer->encode("ab a"), ElementsAre(7, 5, 7));
  EXPECT_THAT(*tokenizer->encode("\u00e4b"), ElementsAre(6, 2, 3, 5));
  EXPECT_THAT(*tokenizer->encode("\u00f6\u4e2d"
                                 "b"),
              ElementsAre(6, 0, 5))
      << "unknown ones fuse";
  EXPECT_THAT(*tokenizer->encode(""), ElementsAre());
  EXPECT_THAT(*tokenizer->encode("a", true), ElementsAre(1, 7));
  EXPECT_THAT(*tokenizer->encode("", true), ElementsAre(1));
  EXPECT_EQ(tokenizer->decode({1, 7, 5, 7}), "ab a");
  EXPECT_EQ(tokenizer->decode({6, 6, 2, 3}), " \u00e4");
  EXPECT_EQ(tokenizer->decode({2, 3, 2, 5}),
            "\uFFFD\uFFFD\uFFFD"
            "b")
      << "not even the whole ones";
  EXPECT_EQ(tokenizer->token_bytes(2), "\xC3");
  EXPECT_EQ(tokenizer->token_bytes(7), " a");
}

TEST(ByteFallback, StreamsHoldBackRunsOfBytes) {
  const auto tokenizer = Tokenizer::parse(fallback_file(kMixtralDecoder));
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  StreamDecoder stream(*tokenizer);
  EXPECT_EQ(stream.push(1), "");
  EXPECT_EQ(stream.push(6), "") << "the space that is stripped";
  EXPECT_EQ(stream.push(7), " a");
  EXPECT_EQ(stream.push(2), "");
  EXPECT_EQ(stream.push(3), "");
  EXPECT_EQ(stream.push(5), "\u00e4b");
  EXPECT_EQ(stream.push(3), "");
  EXPECT_EQ(stream.finish(), "\uFFFD");
  EXPECT_EQ(stream.push(7), "a") << "a new text";
}

TEST(ByteFallback, MetaspaceDropsTheFirstMark) {
  const auto tokenizer =
      Tokenizer::parse(fallback_file(R"({"type": "Metaspace", "replacement": "\u2581"})"));
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  EXPECT_EQ(tokenizer->decode({7, 7, 6}), "a a ");
  EXPECT_EQ(decode_as_stream(*tokenizer, {1, 7, 7, 6}, true), "a a ");
}

TEST(ByteFallback, RefusesDecodersOfAnotherOrder) {
  const auto message = [](std::string_view steps) {
    const auto tokenizer = Tokenizer::parse(
        fallback_file(fmt::format(R"({{"type": "Sequence", "decoders": [{}]}})", steps)));
    return tokenizer ? "accepted" : tokenizer.error().message;
  };
  EXPECT_THAT(message(R"({"type": "Fuse"}, {"type": "ByteFallback"})"),
              HasSubstr("decoder.decoders[1]: ByteFallback after Fuse is not supported"));
  EXPECT_THAT(
      message(R"({"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 1})"),
      HasSubstr("decoder.decoders[1].stop: anything but 0"));
  EXPECT_THAT(
      message(R"({"type": "Fuse"}, {"type": "Strip", "content": "ab", "start": 1, "stop": 0})"),
      HasSubstr("content: is not one character"));
  EXPECT_THAT(message(R"({"type": "Fuse"}, {"type": "WordPiece"})"), HasSubstr("WordPiece"));
}

TEST(TokenizerFile, ErrorsNameThePart) {
  struct Case {
    std::string text;
    std::string message;
  };
  const auto with = [](auto change) {
    SmallFile file;
    change(file);
    return file.text();
  };
  const auto normalizer = [&](std::string part) {
    return with([&](auto& f) { f.normalizer = part; });
  };
  const auto pre_tokenizer = [&](std::string part) {
    return with([&](auto& f) { f.pre_tokenizer = part; });
  };
  const auto model = [&](std::string part) { return with([&](auto& f) { f.model_extra = part; }); };
  const auto merges = [&](std::string part) { return with([&](auto& f) { f.merges = part; }); };
  const auto added = [&](std::string part) {
    return with([&](auto& f) { f.added_tokens = part; });
  };
  const Case cases[] = {
      {"", "not JSON"},
      {"{\"model\": ", "not JSON"},
      {"[1]", "is not a JSON object"},
      {"{}", "has no \"decoder\""},
      {R"({"model": {}, "decoder": 1, "model": {}})", "has \"model\" twice"},
      {R"({"version": "2.0"})", "version: 2.0 is not supported"},
      {normalizer(R"({"type": "BertNormalizer", "lowercase": 3})"), "normalizer.lowercase"},
      {normalizer(
           R"({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Precompiled"}]})"),
       "normalizer.normalizers[1]: normalizer Precompiled"},
      {normalizer("3"), "normalizer: is not an object"},
      {normalizer("{}"), "normalizer: has no \"type\""},
      {pre_tokenizer(R"({"type": "Sentences"})"), "pre_tokenizer: pre_tokenizer Sentences"},
      {pre_tokenizer(R"({"type": "FixedLength", "length": 0})"), "pre_tokenizer.length: is 0"},
      {pre_tokenizer(R"({"type": "CharDelimiterSplit", "delimiter": "ab"})"),
       "pre_tokenizer.delimiter: is not one character"},
      {pre_tokenizer(R"({"type": "Punctuation", "behavior": "Odd"})"), "behavior Odd"},
      {pre_tokenizer(R"({"type": "Split", "pattern": {"Regex": "\\X+"}, "behavior": "Isolated"})"),
       "pre_tokenizer.pattern: \\X at byte 0"},
      {pre_tokenizer(R"({"type": "Split", "pattern": {"Regex": "(a"}, "behavior": "Isolated"})"),
       "missing closing parenthesis"},
      {pre_tokenizer(R"({"type": "Split", "pattern": {"String": "a"}, "behavior": "Joined"})"),
       "behavior Joined"},
      {with([](auto& f) { f.decoder = "null"; }), "has no \"decoder\""},
      {with([](auto& f) { f.decoder = R"({"type": "Metaspace"})"; }),
       "decoder: has no \"replacement\""},
      {with([](auto& f) { f.post_processor = R"({"type": "Odd"})"; }), "post_processor Odd"},
      {with([](auto& f) {
         f.post_processor =
             R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}]})";
       }),
       "post_processor.single[0].SpecialToken: '<s>' is not in special_tokens"},
      {with([](auto& f) {
         f.post_processor = R"({"type": "BertProcessing", "cls": ["x", 999], "sep": ["y", 1]})";
       }),
       "post_processor: there is no token with id 999"},
      {with([](auto& f) { f.left_out_byte = 0x80; }), "no token for byte 0x80"},
      {with([](auto& f) { f.model_type = "Unigram"; }), "model: model Unigram"},
      {model(R"("dropout": 0.1,)"), "model.dropout"},
      {model(R"("byte_fallback": 1,)"), "model.byte_fallback: is not true or false"},
      {model(R"("end_of_word_suffix": "</w>",)"), "model.end_of_word_suffix"},
      {merges(R"([["a", "b", "c"]])"), "model.merges[0]: is not a pair"},
      {merges(R"(["a b c"])"), "model.merges[0]: is not two tokens"},
      {merges(R"([["a", "b"], ["b", "a"]])"), "merges[1]: token 'ba' is not in vocab"},
      {merges("[[1, 2]]"), "model.merges[0][0]: is not a string"},
      {added(R"([{"id": -1, "content": "x"}])"), "added_tokens[0].id: is not a token id"},
      {added(R"([{"id": 1e3, "content": "x"}])"), "added_tokens[0].id: is not a token id"},
      {added(R"([{"id": 99999999, "content": "x"}])"), "added_tokens[0].id: is not a token id"},
      {added(R"([{"id": 300, "content": "a"}])"), "'a' has id 300, but 97"},
      {added(R"([{"id": 97, "content": "<x>"}])"), "id 97 of '<x>' is also that of 'a'"},
      {added(R"([{"id": 300, "content": "<x>"}, {"id": 301, "content": "<x>"}])"), "listed twice"},
  };
  for (const Case& bad : cases) {
    const auto tokenizer = Tokenizer::parse(bad.text);
    ASSERT_FALSE(tokenizer) << bad.message;
    EXPECT_EQ(tokenizer.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(tokenizer.error().message, HasSubstr(bad.message));
  }
  const auto missing = Tokenizer::load("/nonexistent/folder");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, ErrorCode::kNotFound);
  EXPECT_THAT(missing.error().message, HasSubstr("/nonexistent/folder/tokenizer.json"));
}

}  // namespace
}  // namespace moiety
