#include <cmath>
#include <thread>

#include "checkpoint/checkpoint.h"
#include "tests/checkpoint/checkpoint_testing.h"

namespace moiety {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

template <class T>
std::vector<std::byte> bytes_of(const std::vector<T>& values) {
  const auto bytes = std::as_bytes(std::span(values));
  return {bytes.begin(), bytes.end()};
}

SafetensorsSet open(const std::filesystem::path& file) {
  auto set = SafetensorsSet::open_file(file);
  if (!set) throw std::runtime_error(set.error().message);
  return std::move(*set);
}

TEST(Safetensors, WhatIsWrittenIsRead) {
  TempDir dir;
  const std::vector<float> floats = {0.0f, -1.5f, 3e38f, 1e-40f, -0.0f, 7.0f};
  const std::vector<std::int64_t> integers = {-1, std::int64_t{1} << 62};
  SafetensorsWriter writer;
  writer.add("narrow", DType::kBF16, {3}, bytes_of<std::uint16_t>({0x3f80, 0xc000, 0x0001}));
  writer.add_floats("a \"quoted\\\n\" name", {2, 3}, floats);
  writer.add_integers("ids", {2}, integers);
  writer.add("half", DType::kF16, {4}, bytes_of<std::uint16_t>({0x3c00, 0x8001, 0x7bff, 0xfbff}));
  writer.add("ids32", DType::kI32, {1, 3}, bytes_of<std::int32_t>({7, -8, 2147483647}));
  writer.add("empty", DType::kF32, {0, 5}, {});
  writer.add_floats("scalar", {}, std::vector<float>{42.0f});
  ASSERT_TRUE(writer.write(dir / "x.safetensors"));
  const SafetensorsSet set = open(dir / "x.safetensors");
  EXPECT_EQ(set.tensors().size(), 7u);
  EXPECT_THAT(set.files(), ElementsAre(dir / "x.safetensors"));

  const auto read_back = set.read_floats("a \"quoted\\\n\" name");
  ASSERT_TRUE(read_back);
  EXPECT_EQ(std::memcmp(read_back->data(), floats.data(), floats.size() * sizeof(float)), 0);
  EXPECT_THAT(set.find("a \"quoted\\\n\" name")->shape, ElementsAre(2, 3));
  EXPECT_THAT(*set.read_floats("narrow"), ElementsAre(1.0f, -2.0f, 0x1p-133f));
  EXPECT_THAT(*set.read_floats("half"), ElementsAre(1.0f, -0x1p-24f, 65504.0f, -65504.0f));
  EXPECT_EQ(*set.read_integers("ids"), integers);
  EXPECT_THAT(*set.read_integers("ids32"), ElementsAre(7, -8, 2147483647));
  EXPECT_TRUE(set.read_floats("empty")->empty());
  EXPECT_EQ(set.find("scalar")->num_elements(), 1);
  EXPECT_THAT(*set.read_floats("scalar"), ElementsAre(42.0f));
  for (const auto& [name, info] : set.tensors()) {
    EXPECT_EQ(info.offset % dtype_bytes(info.dtype), 0u) << name << " is not aligned";
  }
}

TEST(Safetensors, WritingReplacesAndLeavesNothingBehind) {
  TempDir dir;
  SafetensorsWriter first, second;
  first.add_floats("a", {1}, std::vector<float>{1.0f});
  second.add_floats("b", {1}, std::vector<float>{2.0f});
  ASSERT_TRUE(first.write(dir / "x.safetensors"));
  ASSERT_TRUE(second.write(dir / "x.safetensors"));
  EXPECT_EQ(open(dir / "x.safetensors").find("a"), nullptr);
  EXPECT_THAT(*open(dir / "x.safetensors").read_floats("b"), ElementsAre(2.0f));
  std::filesystem::create_directory(dir / "folder");
  expect_error(first.write(dir / "folder"), ErrorCode::kIo, HasSubstr("folder"));
  expect_error(first.write(dir / "missing/x"), ErrorCode::kIo, HasSubstr("missing/x"));
  std::size_t entries = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(dir.path()))
    ++entries;
  EXPECT_EQ(entries, 2u);
}

TEST(Safetensors, EmptyFileOfNoTensors) {
  TempDir dir;
  ASSERT_TRUE(SafetensorsWriter().write(dir / "x.safetensors"));
  EXPECT_TRUE(open(dir / "x.safetensors").tensors().empty());
}

TEST(Safetensors, ReadsRangesAndCountsTheirBytes) {
  TempDir dir;
  write_text(dir / "x.safetensors", safetensors_bytes(R"({"__metadata__":{"format":"pt"},
                 "a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
                 "b":{"dtype":"I32","shape":[4],"data_offsets":[8,24]}})",
                                                      24));
  const SafetensorsSet set = open(dir / "x.safetensors");
  EXPECT_EQ(set.bytes_read(), 0u);
  std::vector<std::byte> part(5);
  ASSERT_TRUE(set.read_range("b", 3, part));
  for (std::size_t i = 0; i < part.size(); ++i)
    EXPECT_EQ(part[i], static_cast<std::byte>(8 + 3 + i));
  EXPECT_EQ(set.bytes_read(), 5u);
  ASSERT_TRUE(set.read_range("b", 16, std::span<std::byte>()));
  EXPECT_EQ(set.bytes_read(), 5u);
  std::vector<std::byte> whole(8);
  ASSERT_TRUE(set.read("a", whole));
  EXPECT_EQ(set.bytes_read(), 13u);
  ASSERT_TRUE(set.fingerprint());
  EXPECT_EQ(set.bytes_read(), 13u);
  expect_error(set.read("c", whole), ErrorCode::kNotFound, HasSubstr("'c'"));
  expect_error(set.read_floats("b"), ErrorCode::kInvalidArgument, HasSubstr("I32"));
  expect_error(set.read_integers("a"), ErrorCode::kInvalidArgument, HasSubstr("F32"));
  EXPECT_EQ(set.bytes_read(), 13u);
}

TEST(Safetensors, NumbersThatAreNoneAreRefusedWhereTheyAreRead) {
  TempDir dir;
  SafetensorsWriter writer;
  writer.add_floats("a", {3, 2}, std::vector<float>{1, 2, 3, 4, HUGE_VALF, 6});
  writer.add("b", DType::kBF16, {2}, bytes_of<std::uint16_t>({0x7f7f, 0xffff}));
  writer.add("c", DType::kF16, {2}, bytes_of<std::uint16_t>({0xfc00, 0x7bff}));
  writer.add_integers("d", {1}, std::vector<std::int64_t>{-1});
  ASSERT_TRUE(writer.write(dir / "x.safetensors"));
  const SafetensorsSet set = open(dir / "x.safetensors");
  std::vector<float> row(2);
  const auto out = std::as_writable_bytes(std::span(row));
  ASSERT_TRUE(set.read_rows({"a", 1, 2, 2}, 0, out));
  EXPECT_THAT(row, ElementsAre(3.0f, 4.0f));
  expect_error(set.read_rows({"a", 1, 2, 2}, 1, out), ErrorCode::kDataLoss,
               AllOf(HasSubstr("x.safetensors"), HasSubstr("'a' holds")));
  EXPECT_THAT(*set.read_floats("a", 0, 4), ElementsAre(1.0f, 2.0f, 3.0f, 4.0f));
  EXPECT_THAT(*set.read_floats("b", 0, 1), ElementsAre(0x1.fep127f));
  for (const char* name : {"a", "b", "c"}) {
    expect_error(set.read_floats(name), ErrorCode::kDataLoss, HasSubstr("infinite or NaN"));
  }
  expect_error(set.read_rows({"d", 0, 1, 1}, 0, out), ErrorCode::kInvalidArgument,
               HasSubstr("I64"));
  ASSERT_TRUE(set.read_range("a", 0, out));
}

TEST(Safetensors, TensorsOfOtherTypesMayStandBesideThoseThatAreRead) {
  TempDir dir;
  write_text(dir / "x.safetensors",
             safetensors_bytes(R"({"mask":{"dtype":"BOOL","shape":[3],"data_offsets":[0,3]},
                 "codes":{"dtype":"F4","shape":[2,5],"data_offsets":[3,8]},
                 "ids":{"dtype":"I64","shape":[1],"data_offsets":[8,16]},
                 "later":{"dtype":"Q3_K","shape":[256],"data_offsets":[16,20]}})",
                               20));
  const SafetensorsSet set = open(dir / "x.safetensors");
  EXPECT_EQ(set.tensors().size(), 1u);
  EXPECT_THAT(*set.read_integers("ids"), ElementsAre(0x0f0e0d0c0b0a0908));
  ASSERT_EQ(set.other_tensors().size(), 3u);
  const OtherTensor& codes = set.other_tensors().find("codes")->second;
  EXPECT_EQ(codes.dtype, "F4");
  EXPECT_EQ(codes.num_bytes, 5u);
  EXPECT_EQ(codes.offset + 17, std::filesystem::file_size(dir / "x.safetensors"));
  EXPECT_EQ(set.find("mask"), nullptr);
  std::vector<std::byte> out(3);
  const auto names_it = AllOf(HasSubstr("x.safetensors"), HasSubstr("'mask' is BOOL"));
  expect_error(set.read("mask", out), ErrorCode::kInvalidArgument, names_it);
  expect_error(set.read_range("mask", 1, std::span(out).first(1)), ErrorCode::kInvalidArgument,
               names_it);
  expect_error(set.read_floats("mask"), ErrorCode::kInvalidArgument, names_it);
  expect_error(set.read_integers("later"), ErrorCode::kInvalidArgument,
               HasSubstr("'later' is Q3_K"));
  EXPECT_EQ(set.bytes_read(), 8u);
}

TEST(SafetensorsDeathTest, ARangeOutsideOfTheTensorIsABug) {
  TempDir dir;
  SafetensorsWriter writer;
  writer.add_floats("a", {2}, std::vector<float>{1, 2});
  writer.add_floats("b", {2}, std::vector<float>{3, 4});
  ASSERT_TRUE(writer.write(dir / "x.safetensors"));
  const SafetensorsSet set = open(dir / "x.safetensors");
  std::vector<std::byte> out(4);
  EXPECT_DEATH((void)set.read_range("a", 5, out), "outside of tensor a");
  EXPECT_DEATH((void)set.read_range("a", ~std::uint64_t{0}, out), "outside of tensor a");
  EXPECT_DEATH((void)set.read("a", out), "wrong buffer size");
}

TEST(Safetensors, CountsBytesOfAllThreads) {
  const SafetensorsSet set = open(fixture("olmoe") / "model.safetensors");
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&set] {
      for (const auto& [name, info] : set.tensors()) {
        std::vector<std::byte> data(info.num_bytes);
        EXPECT_TRUE(set.read(name, data));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::uint64_t all = 0;
  for (const auto& [name, info] : set.tensors()) all += info.num_bytes;
  EXPECT_EQ(set.bytes_read(), 4 * all);
}

TEST(Safetensors, AFileThatShrinksIsDataLoss) {
  TempDir dir;
  SafetensorsWriter writer;
  writer.add_floats("a", {1000}, std::vector<float>(1000, 1.0f));
  writer.add_floats("b", {1000}, std::vector<float>(1000, 2.0f));
  ASSERT_TRUE(writer.write(dir / "x.safetensors"));
  const SafetensorsSet set = open(dir / "x.safetensors");
  std::filesystem::resize_file(dir / "x.safetensors", set.find("b")->offset + 1234);
  EXPECT_TRUE(set.read_floats("a"));
  expect_error(set.read_floats("b"), ErrorCode::kDataLoss,
               AllOf(HasSubstr("x.safetensors"), HasSubstr("'b'")));
  expect_error(set.fingerprint(), ErrorCode::kDataLoss, HasSubstr("x.safetensors"));
}

TEST(Safetensors, AReplacedFileIsStillTheOneThatWasOpened) {
  TempDir dir;
  SafetensorsWriter first, second;
  first.add_floats("a", {1}, std::vector<float>{1.0f});
  second.add_floats("a", {1}, std::vector<float>{2.0f});
  ASSERT_TRUE(first.write(dir / "x.safetensors"));
  const SafetensorsSet set = open(dir / "x.safetensors");
  ASSERT_TRUE(second.write(dir / "x.safetensors"));
  EXPECT_THAT(*set.read_floats("a"), ElementsAre(1.0f));
}

TEST(Safetensors, FollowsLinks) {
  TempDir dir;
  std::filesystem::create_symlink(fixture("olmoe") / "model.safetensors",
                                  dir / "model.safetensors");
  EXPECT_TRUE(SafetensorsSet::open_folder(dir.path()));
}

}  // namespace
}  // namespace moiety
