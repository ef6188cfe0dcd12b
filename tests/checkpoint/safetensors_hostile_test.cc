// Files that are damaged or made to do harm: each is refused with a reason, none crashes or hangs.
#include <sys/stat.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors_header.h"
#include "tests/checkpoint/checkpoint_testing.h"

namespace moiety {
namespace {

using testing::AllOf;
using testing::AnyOf;
using testing::HasSubstr;

Result<SafetensorsSet> open_bytes(const std::string& bytes) {
  TempDir dir;
  write_text(dir / "x.safetensors", bytes);
  return SafetensorsSet::open_file(dir / "x.safetensors");
}

// One F32 tensor "a" of 8 bytes, whose entry ends with `rest`, in a file with 8 bytes of data.
Result<SafetensorsSet> open_entry(const std::string& rest) {
  return open_bytes(safetensors_bytes(R"({"a":{)" + rest + "}}", 8));
}

TEST(HostileSafetensors, TruncatedAnywhere) {
  const std::string whole =
      safetensors_bytes(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                        R"("b":{"dtype":"F32","shape":[3],"data_offsets":[8,20]}})",
                        20);
  ASSERT_TRUE(open_bytes(whole));
  for (std::size_t length = 0; length < whole.size(); ++length) {
    expect_error(
        open_bytes(whole.substr(0, length)), ErrorCode::kDataLoss,
        AllOf(HasSubstr("x.safetensors"), AnyOf(HasSubstr("truncated"), HasSubstr("short"))));
  }
  expect_error(open_bytes(whole + "x"), ErrorCode::kInvalidArgument, HasSubstr("last 1 bytes"));
}

TEST(HostileSafetensors, HeaderLengths) {
  const std::string good =
      safetensors_bytes(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8);
  for (std::uint64_t length : {std::uint64_t{100'000'001}, ~std::uint64_t{0}, ~std::uint64_t{0} - 7,
                               std::uint64_t{1} << 63}) {
    std::string bytes = good;
    std::memcpy(bytes.data(), &length, sizeof length);
    expect_error(open_bytes(bytes), ErrorCode::kInvalidArgument, HasSubstr(std::to_string(length)));
  }
  for (std::uint64_t length : {std::uint64_t{100'000'000}, std::uint64_t{good.size() - 7}}) {
    std::string bytes = good;
    std::memcpy(bytes.data(), &length, sizeof length);
    expect_error(open_bytes(bytes), ErrorCode::kDataLoss, HasSubstr("inside its header"));
  }
  for (std::uint64_t length = 0; length + 8 < good.size(); ++length) {
    if (length + 16 == good.size()) continue;  // the true length
    std::string bytes = good;
    std::memcpy(bytes.data(), &length, sizeof length);
    EXPECT_FALSE(open_bytes(bytes)) << length;
  }
}

TEST(HostileSafetensors, HeadersThatAreNoHeader) {
  for (const char* header :
       {"", "[]", "1", "null", "{", "{\"a\":1}", "{\"a\":[]}", "{\"\xff\":{}}"}) {
    expect_error(open_bytes(safetensors_bytes(header, 8)), ErrorCode::kInvalidArgument,
                 HasSubstr("x.safetensors"));
  }
  EXPECT_FALSE(open_bytes(safetensors_bytes(std::string(1 << 20, '['), 8)));
  EXPECT_FALSE(open_bytes(safetensors_bytes(std::string(1 << 20, ' '), 8)));
  EXPECT_TRUE(open_bytes(safetensors_bytes("{}  ", 0)));
}

TEST(HostileSafetensors, Entries) {
  ASSERT_TRUE(open_entry(R"("dtype":"F32","shape":[2],"data_offsets":[0,8])"));
  struct Case {
    const char *entry, *reason;
  };
  const Case cases[] = {
      {R"("shape":[2],"data_offsets":[0,8])", "needs dtype"},
      {R"("dtype":"F32","data_offsets":[0,8])", "needs dtype, shape"},
      {R"("dtype":"F32","shape":[2])", "data_offsets"},
      {R"("dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8])", "dtype twice"},
      {R"("dtype":"F32","shape":[2],"data_offsets":[0,8],"data_offsets":[0,8])", "twice"},
      {R"("dtype":"F8_E4M3","shape":[9],"data_offsets":[0,8])", "9 bytes"},
      {R"("dtype":"BOOL","shape":[2],"data_offsets":[0,8])", "2 bytes"},
      {R"("dtype":"F64","shape":[2],"data_offsets":[0,8])", "16 bytes"},
      {R"("dtype":"F6_E2M3","shape":[11],"data_offsets":[0,8])", "whole number of bytes"},
      {R"("dtype":"C64","shape":[288230376151711745],"data_offsets":[0,8])", "large"},
      {R"("dtype":"X9","shape":[1],"data_offsets":[8,16])", "truncated"},
      {R"("dtype":"X9","shape":[1],"data_offsets":[0,4])", "last 4 bytes"},
      {R"("dtype":"","shape":[2],"data_offsets":[0,8])", "dtype"},
      {R"("dtype":"f32","shape":[2],"data_offsets":[0,8])", "dtype"},
      {R"("dtype":"AN_ELEMENT_TYPE_WITH_A_LONG_NAME_","shape":[2],"data_offsets":[0,8])", "dtype"},
      {R"("dtype":4,"shape":[2],"data_offsets":[0,8])", "dtype"},
      {R"("dtype":"F32","shape":2,"data_offsets":[0,8])", "shape"},
      {R"("dtype":"F32","shape":[-2],"data_offsets":[0,8])", "shape"},
      {R"("dtype":"F32","shape":[2.0],"data_offsets":[0,8])", "shape"},
      {R"("dtype":"F32","shape":["2"],"data_offsets":[0,8])", "shape"},
      {R"("dtype":"F32","shape":[3],"data_offsets":[0,8])", "12 bytes"},
      {R"("dtype":"F32","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,8])", "dimensions"},
      {R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8])", "large"},
      {R"("dtype":"F32","shape":[4611686018427387906],"data_offsets":[0,8])", "large"},
      {R"("dtype":"F32","shape":[9223372036854775807,2,0],"data_offsets":[0,0])", "large"},
      {R"("dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,8])", "shape"},
      {R"("dtype":"F32","shape":[2],"data_offsets":[8,0])", "data_offsets"},
      {R"("dtype":"F32","shape":[2],"data_offsets":[-8,0])", "data_offsets"},
      {R"("dtype":"F32","shape":[2],"data_offsets":[0,8,8])", "data_offsets"},
      {R"("dtype":"F32","shape":[2],"data_offsets":[0])", "data_offsets"},
      {R"("dtype":"F32","shape":[2],"data_offsets":[0.0,8.0])", "data_offsets"},
      {R"("dtype":"F32","shape":[2],"data_offsets":[8,16])", "truncated"},
      {R"("dtype":"F32","shape":[2],"data_offsets":[18446744073709551608,18446744073709551616])",
       ""},
      {R"("dtype":"F32","shape":[2],"data_offsets":[18446744073709551600,18446744073709551608])",
       "truncated"},
      {R"("dtype":"F32","shape":[1],"data_offsets":[4,8])", "covers the 4 bytes"},
      {R"("dtype":"F32","shape":[1],"data_offsets":[0,4])", "last 4 bytes"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.entry);
    const auto result = open_entry(c.entry);
    ASSERT_FALSE(result);
    EXPECT_THAT(result.error().message, HasSubstr(c.reason));
  }
}

TEST(HostileSafetensors, OverlapsAndDuplicates) {
  const std::string a = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)";
  expect_error(open_bytes(safetensors_bytes(
                   a + R"("b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12)),
               ErrorCode::kInvalidArgument, HasSubstr("'b': overlaps tensor 'a'"));
  expect_error(open_bytes(safetensors_bytes(
                   a + R"("b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8)),
               ErrorCode::kInvalidArgument, HasSubstr("overlaps"));
  expect_error(open_bytes(safetensors_bytes(
                   a + R"("a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})", 16)),
               ErrorCode::kInvalidArgument, HasSubstr("'a': stands in the header twice"));
  // The same where one of the two is of an element type that is not read.
  expect_error(open_bytes(safetensors_bytes(
                   a + R"("b":{"dtype":"U8","shape":[8],"data_offsets":[4,12]}})", 12)),
               ErrorCode::kInvalidArgument, HasSubstr("'b': overlaps tensor 'a'"));
  expect_error(open_bytes(safetensors_bytes(
                   a + R"("a":{"dtype":"U8","shape":[8],"data_offsets":[8,16]}})", 16)),
               ErrorCode::kInvalidArgument, HasSubstr("'a': stands in the header twice"));
  expect_error(open_bytes(safetensors_bytes(
                   a + R"("b":{"dtype":"U8","shape":[8],"data_offsets":[12,20]}})", 20)),
               ErrorCode::kInvalidArgument, HasSubstr("covers the 4 bytes"));
}

TEST(HostileSafetensors, WhatIsNoFile) {
  TempDir dir;
  expect_error(SafetensorsSet::open_file(dir / "none"), ErrorCode::kNotFound, HasSubstr("none"));
  expect_error(SafetensorsSet::open_file(dir.path()), ErrorCode::kInvalidArgument,
               HasSubstr("regular"));
  ASSERT_EQ(::mkfifo((dir / "pipe").c_str(), 0600), 0);
  expect_error(SafetensorsSet::open_file(dir / "pipe"), ErrorCode::kInvalidArgument,
               HasSubstr("regular"));
  std::filesystem::create_symlink(dir / "loop2", dir / "loop1");
  std::filesystem::create_symlink(dir / "loop1", dir / "loop2");
  expect_error(SafetensorsSet::open_file(dir / "loop1"), ErrorCode::kIo, HasSubstr("loop1"));
  expect_error(SafetensorsSet::open_folder(dir.path()), ErrorCode::kNotFound,
               HasSubstr("neither model.safetensors nor model.safetensors.index.json"));
}

TEST(HostileIndex, ShardNamesThatLeadOut) {
  for (const char* name : {"/etc/passwd", "../model.safetensors", "a/b.safetensors", "..", ".", "",
                           "a\\\\b", "a\\u0000b"}) {
    const std::string json = "{\"weight_map\":{\"t\":\"" + std::string(name) + "\"}}";
    expect_error(parse_shard_index(json), ErrorCode::kInvalidArgument, HasSubstr("'t'"));
  }
  for (const char* json :
       {"", "[]", "{}", "{\"weight_map\":[]}", "{\"weight_map\":{}}", "{\"weight_map\":{\"t\":1}}",
        "{\"weight_map\":{\"t\":{}}}", "{\"weight_map\":{\"t\":\"a\",\"t\":\"b\"}}"}) {
    expect_error(parse_shard_index(json), ErrorCode::kInvalidArgument,
                 testing::Not(HasSubstr("??")));
  }
}

class Shards : public testing::Test {
 protected:
  Shards() {
    one_.add_floats("a", {1}, std::vector<float>{1.0f});
    two_.add_floats("b", {1}, std::vector<float>{2.0f});
    EXPECT_TRUE(one_.write(dir_ / "one.safetensors"));
    EXPECT_TRUE(two_.write(dir_ / "two.safetensors"));
  }
  Result<SafetensorsSet> open(const std::string& weight_map) {
    write_text(dir_ / "model.safetensors.index.json", "{\"weight_map\":" + weight_map + "}");
    return SafetensorsSet::open_folder(dir_.path());
  }
  TempDir dir_;
  SafetensorsWriter one_, two_;
};

TEST_F(Shards, OpenTogether) {
  const auto set = open(R"({"a":"one.safetensors","b":"two.safetensors"})");
  ASSERT_TRUE(set) << set.error().message;
  EXPECT_EQ(set->files().size(), 2u);
  EXPECT_THAT(*set->read_floats("b"), testing::ElementsAre(2.0f));
  expect_error(set->read_floats("c"), ErrorCode::kNotFound, HasSubstr("1 more"));
}

TEST_F(Shards, TheIndexMustBeTrue) {
  expect_error(open(R"({"a":"one.safetensors","b":"three.safetensors"})"), ErrorCode::kNotFound,
               AllOf(HasSubstr("three.safetensors"), HasSubstr("index.json")));
  expect_error(open(R"({"a":"one.safetensors","b":"one.safetensors"})"),
               ErrorCode::kInvalidArgument, AllOf(HasSubstr("one.safetensors: lacks tensor 'b'")));
  expect_error(open(R"({"a":"two.safetensors","b":"one.safetensors"})"),
               ErrorCode::kInvalidArgument,
               HasSubstr("'a', which model.safetensors.index.json places in two.safetensors"));
  EXPECT_TRUE(open(R"({"a":"one.safetensors"})"));
  two_.add_floats("c", {1}, std::vector<float>{3.0f});
  ASSERT_TRUE(two_.write(dir_ / "two.safetensors"));
  expect_error(open(R"({"a":"one.safetensors","b":"two.safetensors"})"),
               ErrorCode::kInvalidArgument,
               HasSubstr("'c', which model.safetensors.index.json does not list"));
  expect_error(open(R"({"a":"model.safetensors.index.json"})"), ErrorCode::kInvalidArgument,
               HasSubstr("index.json"));
}

TEST_F(Shards, ListTensorsThatAreNotReadToo) {
  write_text(dir_ / "two.safetensors",
             safetensors_bytes(R"({"b":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}})", 3));
  const auto set = open(R"({"a":"one.safetensors","b":"two.safetensors"})");
  ASSERT_TRUE(set) << set.error().message;
  ASSERT_EQ(set->other_tensors().count("b"), 1u);
  EXPECT_EQ(set->files()[set->other_tensors().find("b")->second.file], dir_ / "two.safetensors");
  expect_error(set->read_floats("b"), ErrorCode::kInvalidArgument,
               HasSubstr("two.safetensors: tensor 'b' is U8"));
  expect_error(open(R"({"a":"one.safetensors","c":"two.safetensors"})"),
               ErrorCode::kInvalidArgument, HasSubstr("'b', which model.safetensors.index.json"));
}

TEST_F(Shards, TwoNamesOfOneFile) {
  std::filesystem::create_symlink(dir_ / "one.safetensors", dir_ / "again.safetensors");
  expect_error(open(R"({"a":"one.safetensors","b":"again.safetensors"})"),
               ErrorCode::kInvalidArgument, HasSubstr("places in one.safetensors"));
}

TEST_F(Shards, ASingleFileGoesBeforeAnIndex) {
  ASSERT_TRUE(two_.write(dir_ / "model.safetensors"));
  const auto set = open("17");
  ASSERT_TRUE(set) << set.error().message;
  EXPECT_NE(set->find("b"), nullptr);
}

}  // namespace
}  // namespace moiety
