// The part of Apple's Foundation that the backend meets, with Apple's signatures.
#pragma once

#include <cstddef>
#include <cstdint>

#include <dispatch/dispatch.h>

#pragma clang assume_nonnull begin

typedef unsigned long NSUInteger;
typedef long NSInteger;

#define nil nullptr

@protocol NSObject
- (instancetype)retain;
- (oneway void)release;
- (instancetype)autorelease;
@end

__attribute__((objc_root_class))
@interface NSObject<NSObject> {
  Class isa;
}
+ (instancetype)alloc;
- (instancetype)init;
@end

@interface NSString : NSObject
+ (nullable instancetype)stringWithUTF8String:(const char*)nullTerminatedCString;
@property(readonly, nullable) const char* UTF8String;
@end

@interface NSError : NSObject
@property(readonly, copy) NSString* localizedDescription;
@end

@interface NSAutoreleasePool : NSObject
- (void)drain;
@end

@interface NSDictionary : NSObject
@end

#pragma clang assume_nonnull end
