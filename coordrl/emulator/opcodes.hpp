// The opcodes of the 6507: what each does, in terms of `Processor` (m6507.hpp).
//
// One table with two uses: threaded.hpp executes each action in place, plans.hpp splits the actions
// into stages.
#pragma once

// The opcodes in numeric order. An address in parentheses advances PC and clock; `zero_page(5)` is
// the zero-page address of an instruction of 5 cycles. OFTEN marks opcodes that are each at least
// half a percent of executed instructions, and lists the three that follow each of them most often,
// as counted in 1,700 million instructions of 57 games.
#define COORDRL_OPCODES(OFTEN, OP)                                                           \
  OP(0x00, cpu.brk())                                                                        \
  OP(0x01, cpu.ora(cpu.indx()))                                                              \
  OP(0x02, cpu.jam())                                                                        \
  OP(0x03, cpu.modify_indexed_indirect(kSlo))                                                \
  OP(0x04, cpu.zp())                                                                         \
  OP(0x05, cpu.ora(cpu.zp()))                                                                \
  OP(0x06, cpu.modify_zero_page(kAsl, cpu.zero_page(5)))                                     \
  OP(0x07, cpu.modify_zero_page(kSlo, cpu.zero_page(5)))                                     \
  OP(0x08, cpu.php())                                                                        \
  OP(0x09, cpu.ora(cpu.imm()))                                                               \
  OFTEN(0x0A, cpu.shift_a(kAsl), 0x0A, 0x85, 0x49)                                           \
  OP(0x0B, cpu.anc(cpu.imm()))                                                               \
  OP(0x0C, cpu.abs())                                                                        \
  OP(0x0D, cpu.ora(cpu.abs()))                                                               \
  OP(0x0E, cpu.modify(kAsl, cpu.absolute(6)))                                                \
  OP(0x0F, cpu.modify(kSlo, cpu.absolute(6)))                                                \
  OFTEN(0x10, cpu.branch(!cpu.negative(), 0), 0x85, 0x88, 0xCA)                              \
  OP(0x11, cpu.ora(cpu.indy()))                                                              \
  OP(0x12, cpu.jam())                                                                        \
  OP(0x13, cpu.modify_indirect_indexed(kSlo))                                                \
  OP(0x14, cpu.zpx())                                                                        \
  OP(0x15, cpu.ora(cpu.zpx()))                                                               \
  OP(0x16, cpu.modify_zero_page(kAsl, cpu.zero_page_indexed(cpu.x, 6)))                      \
  OP(0x17, cpu.modify_zero_page(kSlo, cpu.zero_page_indexed(cpu.x, 6)))                      \
  OFTEN(0x18, cpu.flag(cpu.carry, false), 0x65, 0x69, 0xA5)                                  \
  OP(0x19, cpu.ora(cpu.absy()))                                                              \
  OP(0x1A, cpu.nop())                                                                        \
  OP(0x1B, cpu.modify(kSlo, cpu.absolute_indexed(cpu.y, 7)))                                 \
  OP(0x1C, cpu.absx())                                                                       \
  OP(0x1D, cpu.ora(cpu.absx()))                                                              \
  OP(0x1E, cpu.modify(kAsl, cpu.absolute_indexed(cpu.x, 7)))                                 \
  OP(0x1F, cpu.modify(kSlo, cpu.absolute_indexed(cpu.x, 7)))                                 \
  OFTEN(0x20, cpu.jsr(), 0x85, 0xA5, 0x60)                                                   \
  OP(0x21, cpu.and_(cpu.indx()))                                                             \
  OP(0x22, cpu.jam())                                                                        \
  OP(0x23, cpu.modify_indexed_indirect(kRla))                                                \
  OP(0x24, cpu.bit(cpu.zp()))                                                                \
  OFTEN(0x25, cpu.and_(cpu.zp()), 0x85, 0xF0, 0x08)                                          \
  OP(0x26, cpu.modify_zero_page(kRol, cpu.zero_page(5)))                                     \
  OP(0x27, cpu.modify_zero_page(kRla, cpu.zero_page(5)))                                     \
  OP(0x28, cpu.plp())                                                                        \
  OFTEN(0x29, cpu.and_(cpu.imm()), 0x85, 0xD0, 0x08)                                         \
  OP(0x2A, cpu.shift_a(kRol))                                                                \
  OP(0x2B, cpu.anc(cpu.imm()))                                                               \
  OP(0x2C, cpu.bit(cpu.abs()))                                                               \
  OP(0x2D, cpu.and_(cpu.abs()))                                                              \
  OP(0x2E, cpu.modify(kRol, cpu.absolute(6)))                                                \
  OP(0x2F, cpu.modify(kRla, cpu.absolute(6)))                                                \
  OFTEN(0x30, cpu.branch(cpu.negative(), 128), 0xA5, 0x85, 0x4C)                             \
  OP(0x31, cpu.and_(cpu.indy()))                                                             \
  OP(0x32, cpu.jam())                                                                        \
  OP(0x33, cpu.modify_indirect_indexed(kRla))                                                \
  OP(0x34, cpu.zpx())                                                                        \
  OP(0x35, cpu.and_(cpu.zpx()))                                                              \
  OP(0x36, cpu.modify_zero_page(kRol, cpu.zero_page_indexed(cpu.x, 6)))                      \
  OP(0x37, cpu.modify_zero_page(kRla, cpu.zero_page_indexed(cpu.x, 6)))                      \
  OFTEN(0x38, cpu.flag(cpu.carry, true), 0xE5, 0xE9, 0x8A)                                   \
  OP(0x39, cpu.and_(cpu.absy()))                                                             \
  OP(0x3A, cpu.nop())                                                                        \
  OP(0x3B, cpu.modify(kRla, cpu.absolute_indexed(cpu.y, 7)))                                 \
  OP(0x3C, cpu.absx())                                                                       \
  OP(0x3D, cpu.and_(cpu.absx()))                                                             \
  OP(0x3E, cpu.modify(kRol, cpu.absolute_indexed(cpu.x, 7)))                                 \
  OP(0x3F, cpu.modify(kRla, cpu.absolute_indexed(cpu.x, 7)))                                 \
  OP(0x40, cpu.rti())                                                                        \
  OP(0x41, cpu.eor(cpu.indx()))                                                              \
  OP(0x42, cpu.jam())                                                                        \
  OP(0x43, cpu.modify_indexed_indirect(kSre))                                                \
  OP(0x44, cpu.zp())                                                                         \
  OP(0x45, cpu.eor(cpu.zp()))                                                                \
  OP(0x46, cpu.modify_zero_page(kLsr, cpu.zero_page(5)))                                     \
  OP(0x47, cpu.modify_zero_page(kSre, cpu.zero_page(5)))                                     \
  OP(0x48, cpu.pha())                                                                        \
  OP(0x49, cpu.eor(cpu.imm()))                                                               \
  OFTEN(0x4A, cpu.shift_a(kLsr), 0x4A, 0xA8, 0x85)                                           \
  OP(0x4B, cpu.asr(cpu.imm()))                                                               \
  OFTEN(0x4C, cpu.jmp(), 0x85, 0xA5, 0xA2)                                                   \
  OP(0x4D, cpu.eor(cpu.abs()))                                                               \
  OP(0x4E, cpu.modify(kLsr, cpu.absolute(6)))                                                \
  OP(0x4F, cpu.modify(kSre, cpu.absolute(6)))                                                \
  OP(0x50, cpu.branch(!cpu.overflow, kNoWait))                                               \
  OP(0x51, cpu.eor(cpu.indy()))                                                              \
  OP(0x52, cpu.jam())                                                                        \
  OP(0x53, cpu.modify_indirect_indexed(kSre))                                                \
  OP(0x54, cpu.zpx())                                                                        \
  OP(0x55, cpu.eor(cpu.zpx()))                                                               \
  OP(0x56, cpu.modify_zero_page(kLsr, cpu.zero_page_indexed(cpu.x, 6)))                      \
  OP(0x57, cpu.modify_zero_page(kSre, cpu.zero_page_indexed(cpu.x, 6)))                      \
  OP(0x58, cpu.flag(cpu.interrupt, false))                                                   \
  OP(0x59, cpu.eor(cpu.absy()))                                                              \
  OP(0x5A, cpu.nop())                                                                        \
  OP(0x5B, cpu.modify(kSre, cpu.absolute_indexed(cpu.y, 7)))                                 \
  OP(0x5C, cpu.absx())                                                                       \
  OP(0x5D, cpu.eor(cpu.absx()))                                                              \
  OP(0x5E, cpu.modify(kLsr, cpu.absolute_indexed(cpu.x, 7)))                                 \
  OP(0x5F, cpu.modify(kSre, cpu.absolute_indexed(cpu.x, 7)))                                 \
  OFTEN(0x60, cpu.rts(), 0x85, 0xA5, 0x20)                                                   \
  OP(0x61, cpu.adc(cpu.indx()))                                                              \
  OP(0x62, cpu.jam())                                                                        \
  OP(0x63, cpu.modify_indexed_indirect(kRra))                                                \
  OP(0x64, cpu.zp())                                                                         \
  OP(0x65, cpu.adc(cpu.zp()))                                                                \
  OP(0x66, cpu.modify_zero_page(kRor, cpu.zero_page(5)))                                     \
  OP(0x67, cpu.modify_zero_page(kRra, cpu.zero_page(5)))                                     \
  OP(0x68, cpu.pla())                                                                        \
  OP(0x69, cpu.adc(cpu.imm()))                                                               \
  OP(0x6A, cpu.shift_a(kRor))                                                                \
  OP(0x6B, cpu.arr(cpu.imm()))                                                               \
  OP(0x6C, cpu.jmp_indirect())                                                               \
  OP(0x6D, cpu.adc(cpu.abs()))                                                               \
  OP(0x6E, cpu.modify(kRor, cpu.absolute(6)))                                                \
  OP(0x6F, cpu.modify(kRra, cpu.absolute(6)))                                                \
  OP(0x70, cpu.branch(cpu.overflow, kNoWait))                                                \
  OP(0x71, cpu.adc(cpu.indy()))                                                              \
  OP(0x72, cpu.jam())                                                                        \
  OP(0x73, cpu.modify_indirect_indexed(kRra))                                                \
  OP(0x74, cpu.zpx())                                                                        \
  OP(0x75, cpu.adc(cpu.zpx()))                                                               \
  OP(0x76, cpu.modify_zero_page(kRor, cpu.zero_page_indexed(cpu.x, 6)))                      \
  OP(0x77, cpu.modify_zero_page(kRra, cpu.zero_page_indexed(cpu.x, 6)))                      \
  OP(0x78, cpu.flag(cpu.interrupt, true))                                                    \
  OP(0x79, cpu.adc(cpu.absy()))                                                              \
  OP(0x7A, cpu.nop())                                                                        \
  OP(0x7B, cpu.modify(kRra, cpu.absolute_indexed(cpu.y, 7)))                                 \
  OP(0x7C, cpu.absx())                                                                       \
  OP(0x7D, cpu.adc(cpu.absx()))                                                              \
  OP(0x7E, cpu.modify(kRor, cpu.absolute_indexed(cpu.x, 7)))                                 \
  OP(0x7F, cpu.modify(kRra, cpu.absolute_indexed(cpu.x, 7)))                                 \
  OP(0x80, cpu.imm())                                                                        \
  OP(0x81, cpu.store(cpu.indexed_indirect(6), cpu.a))                                        \
  OP(0x82, cpu.imm())                                                                        \
  OP(0x83, cpu.store(cpu.indexed_indirect(6), cpu.a & cpu.x))                                \
  OFTEN(0x84, cpu.store_zero_page(cpu.zero_page(3), cpu.y), 0x85, 0x84, 0x8A)                \
  OFTEN(0x85, cpu.store_zero_page(cpu.zero_page(3), cpu.a), 0x85, 0xB1, 0xA5)                \
  OFTEN(0x86, cpu.store_zero_page(cpu.zero_page(3), cpu.x), 0x86, 0x85, 0x84)                \
  OP(0x87, cpu.store_zero_page(cpu.zero_page(3), cpu.a & cpu.x))                             \
  OFTEN(0x88, cpu.count(cpu.y, kDec), 0x10, 0xD0, 0xC4)                                      \
  OP(0x89, cpu.imm())                                                                        \
  OFTEN(0x8A, cpu.transfer(cpu.x, cpu.a), 0x38, 0xE5, 0xA8)                                  \
  OP(0x8B, cpu.ane(cpu.imm()))                                                               \
  OP(0x8C, cpu.store(cpu.absolute(4), cpu.y))                                                \
  OP(0x8D, cpu.store(cpu.absolute(4), cpu.a))                                                \
  OP(0x8E, cpu.store(cpu.absolute(4), cpu.x))                                                \
  OP(0x8F, cpu.store(cpu.absolute(4), cpu.a & cpu.x))                                        \
  OFTEN(0x90, cpu.branch(!cpu.carry, kNoWait), 0x85, 0x88, 0xA9)                             \
  OP(0x91, cpu.store(cpu.indirect_indexed(6), cpu.a))                                        \
  OP(0x92, cpu.jam())                                                                        \
  OP(0x93, cpu.store_and_page(cpu.indirect_indexed(6), cpu.a & cpu.x))                       \
  OP(0x94, cpu.store_zero_page(cpu.zero_page_indexed(cpu.x, 4), cpu.y))                      \
  OFTEN(0x95, cpu.store_zero_page(cpu.zero_page_indexed(cpu.x, 4), cpu.a), 0xCA, 0x88, 0x85) \
  OP(0x96, cpu.store_zero_page(cpu.zero_page_indexed(cpu.y, 4), cpu.x))                      \
  OP(0x97, cpu.store_zero_page(cpu.zero_page_indexed(cpu.y, 4), cpu.a & cpu.x))              \
  OFTEN(0x98, cpu.transfer(cpu.y, cpu.a), 0x4A, 0xE5, 0xD5)                                  \
  OP(0x99, cpu.store(cpu.absolute_indexed(cpu.y, 5), cpu.a))                                 \
  OP(0x9A, cpu.txs())                                                                        \
  OP(0x9B, cpu.shs(cpu.absolute_indexed(cpu.y, 5)))                                          \
  OP(0x9C, cpu.store_and_page(cpu.absolute_indexed(cpu.x, 5), cpu.y))                        \
  OP(0x9D, cpu.store(cpu.absolute_indexed(cpu.x, 5), cpu.a))                                 \
  OP(0x9E, cpu.store_and_page(cpu.absolute_indexed(cpu.y, 5), cpu.x))                        \
  OP(0x9F, cpu.store_and_page(cpu.absolute_indexed(cpu.y, 5), cpu.a & cpu.x))                \
  OFTEN(0xA0, cpu.ldy(cpu.imm()), 0x84, 0x8A, 0x38)                                          \
  OP(0xA1, cpu.lda(cpu.indx()))                                                              \
  OFTEN(0xA2, cpu.ldx(cpu.imm()), 0x86, 0x9A, 0xA1)                                          \
  OP(0xA3, cpu.lax(cpu.indx()))                                                              \
  OFTEN(0xA4, cpu.ldy(cpu.zp()), 0xB9, 0xB1, 0x85)                                           \
  OFTEN(0xA5, cpu.lda(cpu.zp()), 0x85, 0x29, 0xC9)                                           \
  OFTEN(0xA6, cpu.ldx(cpu.zp()), 0xBD, 0xB5, 0x86)                                           \
  OP(0xA7, cpu.lax(cpu.zp()))                                                                \
  OFTEN(0xA8, cpu.transfer(cpu.a, cpu.y), 0xB1, 0xB9, 0x29)                                  \
  OFTEN(0xA9, cpu.lda(cpu.imm()), 0x85, 0xF0, 0xA4)                                          \
  OFTEN(0xAA, cpu.transfer(cpu.a, cpu.x), 0xB1, 0xBD, 0xB9)                                  \
  OP(0xAB, cpu.lxa(cpu.imm()))                                                               \
  OP(0xAC, cpu.ldy(cpu.abs()))                                                               \
  OP(0xAD, cpu.lda(cpu.abs()))                                                               \
  OP(0xAE, cpu.ldx(cpu.abs()))                                                               \
  OP(0xAF, cpu.lax(cpu.abs()))                                                               \
  OFTEN(0xB0, cpu.branch(cpu.carry, kNoWait), 0x85, 0xA9, 0xEA)                              \
  OFTEN(0xB1, cpu.lda(cpu.indy()), 0x85, 0xAA, 0xA4)                                         \
  OP(0xB2, cpu.jam())                                                                        \
  OP(0xB3, cpu.lax(cpu.indy()))                                                              \
  OP(0xB4, cpu.ldy(cpu.zpx()))                                                               \
  OFTEN(0xB5, cpu.lda(cpu.zpx()), 0x85, 0x29, 0x0A)                                          \
  OP(0xB6, cpu.ldx(cpu.zpy()))                                                               \
  OP(0xB7, cpu.lax(cpu.zpy()))                                                               \
  OP(0xB8, cpu.flag(cpu.overflow, false))                                                    \
  OFTEN(0xB9, cpu.lda(cpu.absy()), 0x85, 0x30, 0x29)                                         \
  OP(0xBA, cpu.transfer(cpu.s, cpu.x))                                                       \
  OP(0xBB, cpu.las(cpu.absy()))                                                              \
  OP(0xBC, cpu.ldy(cpu.absx()))                                                              \
  OFTEN(0xBD, cpu.lda(cpu.absx()), 0x85, 0x8D, 0x45)                                         \
  OP(0xBE, cpu.ldx(cpu.absy()))                                                              \
  OP(0xBF, cpu.lax(cpu.absy()))                                                              \
  OFTEN(0xC0, cpu.cpy(cpu.imm()), 0xB0, 0xD0, 0x90)                                          \
  OP(0xC1, cpu.cmp(cpu.indx()))                                                              \
  OP(0xC2, cpu.imm())                                                                        \
  OP(0xC3, cpu.modify_indexed_indirect(kDcp))                                                \
  OFTEN(0xC4, cpu.cpy(cpu.zp()), 0xD0, 0xB0, 0x90)                                           \
  OP(0xC5, cpu.cmp(cpu.zp()))                                                                \
  OFTEN(0xC6, cpu.modify_zero_page(kDec, cpu.zero_page(5)), 0x10, 0xD0, 0xA4)                \
  OP(0xC7, cpu.modify_zero_page(kDcp, cpu.zero_page(5)))                                     \
  OFTEN(0xC8, cpu.count(cpu.y, kInc), 0xC0, 0xE9, 0x30)                                      \
  OFTEN(0xC9, cpu.cmp(cpu.imm()), 0xF0, 0xB0, 0x90)                                          \
  OFTEN(0xCA, cpu.count(cpu.x, kDec), 0x10, 0xD0, 0x30)                                      \
  OP(0xCB, cpu.sbx(cpu.imm()))                                                               \
  OP(0xCC, cpu.cpy(cpu.abs()))                                                               \
  OP(0xCD, cpu.cmp(cpu.abs()))                                                               \
  OP(0xCE, cpu.modify(kDec, cpu.absolute(6)))                                                \
  OP(0xCF, cpu.modify(kDcp, cpu.absolute(6)))                                                \
  OFTEN(0xD0, cpu.branch(!cpu.zero(), 1), 0x85, 0xA9, 0xA5)                                  \
  OP(0xD1, cpu.cmp(cpu.indy()))                                                              \
  OP(0xD2, cpu.jam())                                                                        \
  OP(0xD3, cpu.modify_indirect_indexed(kDcp))                                                \
  OP(0xD4, cpu.zpx())                                                                        \
  OP(0xD5, cpu.cmp(cpu.zpx()))                                                               \
  OP(0xD6, cpu.modify_zero_page(kDec, cpu.zero_page_indexed(cpu.x, 6)))                      \
  OP(0xD7, cpu.modify_zero_page(kDcp, cpu.zero_page_indexed(cpu.x, 6)))                      \
  OP(0xD8, cpu.flag(cpu.decimal, false))                                                     \
  OP(0xD9, cpu.cmp(cpu.absy()))                                                              \
  OP(0xDA, cpu.nop())                                                                        \
  OP(0xDB, cpu.modify(kDcp, cpu.absolute_indexed(cpu.y, 7)))                                 \
  OP(0xDC, cpu.absx())                                                                       \
  OP(0xDD, cpu.cmp(cpu.absx()))                                                              \
  OP(0xDE, cpu.modify(kDec, cpu.absolute_indexed(cpu.x, 7)))                                 \
  OP(0xDF, cpu.modify(kDcp, cpu.absolute_indexed(cpu.x, 7)))                                 \
  OFTEN(0xE0, cpu.cpx(cpu.imm()), 0xD0, 0xB0, 0x90)                                          \
  OP(0xE1, cpu.sbc(cpu.indx()))                                                              \
  OP(0xE2, cpu.imm())                                                                        \
  OP(0xE3, cpu.modify_indexed_indirect(kIsb))                                                \
  OFTEN(0xE4, cpu.cpx(cpu.zp()), 0xD0, 0x85, 0x90)                                           \
  OFTEN(0xE5, cpu.sbc(cpu.zp()), 0xC9, 0x25, 0xA8)                                           \
  OP(0xE6, cpu.modify_zero_page(kInc, cpu.zero_page(5)))                                     \
  OP(0xE7, cpu.modify_zero_page(kIsb, cpu.zero_page(5)))                                     \
  OFTEN(0xE8, cpu.count(cpu.x, kInc), 0x86, 0xE8, 0xE5)                                      \
  OFTEN(0xE9, cpu.sbc(cpu.imm()), 0xB0, 0x85, 0xC8)                                          \
  OFTEN(0xEA, cpu.nop(), 0xEA, 0xA5, 0x4C)                                                   \
  OP(0xEB, cpu.sbc(cpu.imm()))                                                               \
  OP(0xEC, cpu.cpx(cpu.abs()))                                                               \
  OP(0xED, cpu.sbc(cpu.abs()))                                                               \
  OP(0xEE, cpu.modify(kInc, cpu.absolute(6)))                                                \
  OP(0xEF, cpu.modify(kIsb, cpu.absolute(6)))                                                \
  OFTEN(0xF0, cpu.branch(cpu.zero(), kNoWait), 0x85, 0xA9, 0xC9)                             \
  OP(0xF1, cpu.sbc(cpu.indy()))                                                              \
  OP(0xF2, cpu.jam())                                                                        \
  OP(0xF3, cpu.modify_indirect_indexed(kIsb))                                                \
  OP(0xF4, cpu.zpx())                                                                        \
  OP(0xF5, cpu.sbc(cpu.zpx()))                                                               \
  OP(0xF6, cpu.modify_zero_page(kInc, cpu.zero_page_indexed(cpu.x, 6)))                      \
  OP(0xF7, cpu.modify_zero_page(kIsb, cpu.zero_page_indexed(cpu.x, 6)))                      \
  OP(0xF8, cpu.flag(cpu.decimal, true))                                                      \
  OP(0xF9, cpu.sbc(cpu.absy()))                                                              \
  OP(0xFA, cpu.nop())                                                                        \
  OP(0xFB, cpu.modify(kIsb, cpu.absolute_indexed(cpu.y, 7)))                                 \
  OP(0xFC, cpu.absx())                                                                       \
  OP(0xFD, cpu.sbc(cpu.absx()))                                                              \
  OP(0xFE, cpu.modify(kInc, cpu.absolute_indexed(cpu.x, 7)))                                 \
  OP(0xFF, cpu.modify(kIsb, cpu.absolute_indexed(cpu.x, 7)))
